# SPDX-License-Identifier: Apache-2.0
"""Compactness of the features within a class, and separation of the classes' means."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize, one_hot, relu

from scripts.prototypes.loss import cosine_distance
from scripts.prototypes.voxels import check_embeddings


def compactness(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean cosine distance of embeddings to the mean direction of their class, averaged over classes.

    For unit embeddings u of class c with mean m_c that is `mean_n (1 - u_n . m_c / |m_c|) = 1 - |m_c|`, the circular
    variance (Mardia & Jupp, Directional Statistics, 2000): 0 if all have one direction, 1 if the directions cancel out.
    The mean depends on the embeddings, so the gradient pulls them together.

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings to leave out.
        num_classes: K.

    Returns:
        A scalar in [0, 1]; 0 with a zero gradient if no class has two embeddings.

    Raises:
        ValueError: for a label out of range, or unequal numbers of labels and embeddings.
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
    """Shortfall of the cosine distance between two classes' means below a margin, averaged over pairs of classes.

    `mean_{c<d} max(0, margin - (1 - cos(m_c, m_d)))`, where m is the mean of a class's unit embeddings. The gradient
    pushes the embeddings of two classes apart until the distance of their means is `margin`: 1 is orthogonal, 2 is
    opposite (which only two classes can be).

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings to leave out.
        num_classes: K.
        margin: cosine distance in (0, 2].

    Returns:
        A scalar in [0, margin]; 0 with a zero gradient if fewer than two classes have embeddings.

    Raises:
        ValueError: for a margin outside (0, 2], a label out of range, or unequal numbers of labels and embeddings.
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
