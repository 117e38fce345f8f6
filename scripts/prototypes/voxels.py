# SPDX-License-Identifier: Apache-2.0
"""From volumes to labelled embeddings: grids, pseudo-labels and sampling of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

NO_CLASS = -1
"""Class of a voxel to leave out: an uncertain pseudo-label, or a label equal to the dataset's `ignore_value`."""


def labels_on_grid(labels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resample labels `(B, D, H, W)`, or any value per voxel, to the grid `shape` by nearest neighbour."""
    if tuple(labels.shape[1:]) == tuple(shape):
        return labels
    return interpolate(labels[:, None].float(), size=tuple(shape), mode="nearest-exact")[:, 0].to(labels.dtype)


def pseudo_labels(logits: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Most probable class per voxel, `NO_CLASS` where its probability is below `threshold`.

    Args:
        logits: `(B, K, D, H, W)`.
        threshold: minimum probability in [0, 1]; 0 keeps every voxel.

    Returns:
        Labels `(B, D, H, W)`, int64, and the probability of the most probable class, `(B, D, H, W)` in [1 / K, 1].
    """
    return confident_classes(logits.float().softmax(dim=1), threshold)


def confident_classes(probabilities: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`pseudo_labels` of probabilities `(B, K, ...)`. A voxel whose probabilities hold a NaN has no class."""
    confidence, classes = probabilities.max(dim=1)
    return classes.masked_fill(~(confidence >= threshold), NO_CLASS), confidence


def voxel_embeddings(features: torch.Tensor) -> torch.Tensor:
    """Feature maps `(B, C, D, H, W)` as one embedding per voxel, `(B * D * H * W, C)`, ordered as flattened labels."""
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def check_labels(labels: torch.Tensor, num_classes: int) -> None:
    """Raise `ValueError` for a label that is neither in [0, K) nor `NO_CLASS`."""
    if labels.numel() > 0 and not (int(labels.min()) >= NO_CLASS and int(labels.max()) < num_classes):
        raise ValueError(
            f"Labels must be in [0, {num_classes}) or {NO_CLASS} for no class, "
            f"got {int(labels.min())} to {int(labels.max())}."
        )


def check_embeddings(embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
    """Check that embeddings and labels match.

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)`, in [0, K) or `NO_CLASS`.
        num_classes: K.

    Raises:
        ValueError: if embeddings are not a matrix, their number differs from that of the labels, or a label is out of
            range.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"Embeddings must be (N, D), got shape {tuple(embeddings.shape)}.")
    if labels.ndim != 1 or len(embeddings) != len(labels):
        raise ValueError(
            f"Each embedding needs one label: there are {len(embeddings)} embeddings and {labels.numel()} labels. "
            "Bring the labels to the features' grid first (scripts.prototypes.voxels.labels_on_grid)."
        )
    check_labels(labels, num_classes)


def sample_per_class(labels: torch.Tensor, num_classes: int, limit: int | None) -> torch.Tensor:
    """Draw at most `limit` voxels of each class without replacement, from torch's generator.

    Args:
        labels: class of each voxel, `(N,)`; `NO_CLASS` is never drawn.
        num_classes: K.
        limit: maximum number of voxels of a class, `None` for all.

    Returns:
        Sorted indices into `labels`, int64.
    """
    if limit is None:
        return (labels != NO_CLASS).nonzero()[:, 0]
    chosen = []
    for c in range(num_classes):
        where = (labels == c).nonzero()[:, 0]
        if len(where) > limit:
            # Drawn on the CPU so that a run on any device draws the same voxels.
            where = where[torch.randperm(len(where))[:limit].to(where.device)]
        chosen.append(where)
    return torch.cat(chosen).sort().values
