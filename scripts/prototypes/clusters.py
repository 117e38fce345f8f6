# SPDX-License-Identifier: Apache-2.0
"""How closely the features of a class lie together, and how far apart those of different classes."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize, one_hot, relu

from scripts.prototypes.loss import cosine_distance
from scripts.prototypes.voxels import check_embeddings


def compactness(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean cosine distance of features to the mean direction of their class, averaged over classes.

    For unit embeddings u of class c with mean m_c that is `mean_n (1 - u_n . m_c / |m_c|) = 1 - |m_c|`, the circular
    variance (Mardia & Jupp, Directional Statistics, 2000): 0 for one common direction, 1 where directions cancel out.
    The mean moves with the features, so the gradient pulls them together.

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings that take no part.
        num_classes: K.

    Returns:
        A scalar in [0, 1]; 0 with a zero gradient where no class has two embeddings.

    Raises:
        ValueError: for a label out of range or another number of labels than embeddings.
    """
    means = _mean_directions(features, labels, num_classes, min_embeddings=2)
    if len(means) == 0:
        return features[:0].sum()
    return (1.0 - torch.linalg.vector_norm(means, dim=1)).mean()


def check_margin(margin: float) -> None:
    """Raise `ValueError` unless `margin` is a cosine distance in (0, 2]."""
    if not 0.0 < margin <= 2.0:
        raise ValueError(f"margin must be a cosine distance in (0, 2], got {margin}.")


def separation(features: torch.Tensor, labels: torch.Tensor, num_classes: int, margin: float = 1.0) -> torch.Tensor:
    """How far the mean directions of two classes fall short of a cosine distance, averaged over pairs of classes.

    `mean_{c<d} max(0, margin - (1 - cos(m_c, m_d)))`, where m is the mean of a class's unit embeddings. The gradient
    pushes the features of two classes apart until their means are `margin` away from each other: at 1 orthogonal, at 2
    opposite, which more than two classes cannot all be.

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings that take no part.
        num_classes: K.
        margin: cosine distance in (0, 2].

    Returns:
        A scalar in [0, margin]; 0 with a zero gradient where fewer than two classes have embeddings.

    Raises:
        ValueError: for a margin outside (0, 2], a label out of range or another number of labels than embeddings.
    """
    check_margin(margin)
    means = _mean_directions(features, labels, num_classes, min_embeddings=1)
    if len(means) < 2:
        return features[:0].sum()
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    return relu(margin - cosine_distance(means, means)[first, second]).mean()


def _mean_directions(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, min_embeddings: int
) -> torch.Tensor:
    """Means `(P, D)` of the unit embeddings of each class that has at least `min_embeddings`."""
    check_embeddings(features, labels, num_classes)
    used = labels >= 0
    members = one_hot(labels[used], num_classes).T.to(features.dtype)
    counts = members.sum(dim=1)
    present = counts >= min_embeddings
    return members[present] @ normalize(features[used], dim=1) / counts[present, None]
