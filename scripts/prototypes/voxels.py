# SPDX-License-Identifier: Apache-2.0
"""Convert volumes to labelled embeddings: grids, pseudo-labels and sampling of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import interpolate

NO_CLASS = -1
"""Class of voxels to ignore: uncertain pseudo-labels, and labels equal to the dataset's `ignore_value`."""


def stride_of(side: int, cells: int) -> int | None:
    """Number of voxels per cell of a feature map whose last cell may extend beyond the image.

    The networks halve their grids, and `FeatureInferer` keeps `ceil(side / stride)` cells of a padded patch. The stride
    is therefore the power of two that gives this number of cells; with two cells or more there is at most one. If there
    is none, the stride is the quotient `side / cells`, which must be an integer.

    Args:
        side: number of voxels of the image along an axis.
        cells: number of cells of the feature map along that axis.

    Returns:
        The stride, or `None` if there is neither such a power of two nor an integer quotient.
    """
    for power in range(side.bit_length() + 1):
        if -(-side // 2**power) == cells:
            return 2**power
    return side // cells if side % cells == 0 else None


def labels_on_grid(labels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Sample labels `(B, D, H, W)`, or any other value per voxel, at the centres of the cells of a feature map.

    If a cell has an even number of voxels, as with every even stride, the voxel after the centre is taken. If the
    centre of a cell lies beyond the image, the last voxel is taken. If the grids have no common stride (see
    `stride_of`), labels are resampled by nearest neighbour.

    Args:
        labels: on the image's grid.
        shape: `(d, h, w)` of the feature map.
    """
    if tuple(labels.shape[1:]) == tuple(shape):
        return labels
    sides = labels.shape[1:]
    strides = [stride_of(side, cells) for side, cells in zip(sides, shape, strict=True)]
    if None not in strides:
        for axis, (side, cells, stride) in enumerate(zip(sides, shape, strides, strict=True), start=1):
            assert stride is not None
            centres = torch.arange(cells, device=labels.device) * stride + stride // 2
            labels = labels.index_select(axis, centres.clamp(max=side - 1))
        return labels
    return interpolate(labels[:, None].float(), size=tuple(shape), mode="nearest-exact")[:, 0].to(labels.dtype)


def pseudo_labels(logits: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable class of each voxel, or `NO_CLASS` where its probability is below `threshold`.

    Args:
        logits: `(B, K, D, H, W)`.
        threshold: minimum probability in [0, 1]; 0 keeps every voxel.

    Returns:
        Labels `(B, D, H, W)`, int64, and the probability of the most probable class, `(B, D, H, W)` in [1 / K, 1].
    """
    return confident_classes(logits.float().softmax(dim=1), threshold)


def confident_classes(probabilities: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pseudo_labels`, for probabilities `(B, K, ...)`. A voxel with a NaN among its probabilities has no class."""
    confidence, classes = probabilities.max(dim=1)
    return classes.masked_fill(~(confidence >= threshold), NO_CLASS), confidence


def voxel_embeddings(features: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """Reshape feature maps `(B, C, D, H, W)` to embeddings `(B * D * H * W, C)`, in the order of flattened labels.

    Args:
        features: maps, or embeddings `(N, C)`, which are returned unchanged.
        chosen: indices of voxels, int64 `(M,)`; the result is `(M, C)`, and the other voxels are not copied. `None`
            for all voxels.
    """
    if chosen is None:
        return features.movedim(1, -1).reshape(-1, features.shape[1])
    if features.ndim == 2:
        return features.index_select(0, chosen)
    maps = features.flatten(2)
    return maps[chosen // maps.shape[2], :, chosen % maps.shape[2]]


def check_labels(labels: torch.Tensor, num_classes: int) -> None:
    """Raise `ValueError` for a label that is neither in [0, K) nor `NO_CLASS`."""
    if labels.numel() == 0:
        return
    lowest, highest = torch.stack(labels.aminmax()).tolist()
    if lowest < NO_CLASS or highest >= num_classes:
        raise ValueError(f"Labels must be in [0, {num_classes}) or {NO_CLASS} for no class, got {lowest} to {highest}.")


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
    check_counts(len(embeddings), labels)
    check_labels(labels, num_classes)


def check_counts(embeddings: int, labels: torch.Tensor) -> None:
    """Raise `ValueError` unless there is one label per embedding."""
    if labels.ndim != 1 or embeddings != len(labels):
        raise ValueError(
            f"Each embedding needs one label: there are {embeddings} embeddings and {labels.numel()} labels. "
            "Bring the labels to the features' grid first (scripts.prototypes.voxels.labels_on_grid)."
        )


def group_by_class(labels: torch.Tensor, num_classes: int) -> list[torch.Tensor]:
    """Return the indices of the voxels of each class as K ascending int64 tensors, without voxels of `NO_CLASS`.

    One sort finds all classes. The host waits for the device only twice, whatever the number of classes: once to check
    the labels, and once to get the number of voxels per class, which `draw_indices` needs.

    Args:
        labels: `(N,)`, in [0, K) or `NO_CLASS`.
        num_classes: K.

    Raises:
        ValueError: for a label out of range.
    """
    check_labels(labels, num_classes)
    narrow = torch.int8 if num_classes <= torch.iinfo(torch.int8).max else torch.int32
    ordered, order = labels.to(narrow).sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_classes + 1, dtype=narrow, device=labels.device)).tolist()
    return [order[start:end] for start, end in pairwise(starts)]


def draw_indices(count: int, limit: int) -> torch.Tensor:
    """Draw at most `limit` of the indices in [0, `count`) without replacement.

    For a large `count` the time depends on `limit` only, unlike the time of `torch.randperm(count)`. Indices are drawn
    on the CPU, so that runs on different devices draw the same ones. The seed comes from torch's generator.

    Returns:
        int64 indices on the CPU, in random order; all indices in ascending order if `count` is at most `limit`.
    """
    if count <= limit:
        return torch.arange(count)
    generator = np.random.default_rng(int(torch.randint(torch.iinfo(torch.int64).max, ())))
    return torch.from_numpy(generator.choice(count, limit, replace=False))


def sample_group(group: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Draw at most `limit` indices of a group of `group_by_class` without replacement; `None` takes all."""
    return group if limit is None or len(group) <= limit else group[draw_indices(len(group), limit).to(group.device)]


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
    return torch.cat([sample_group(group, limit) for group in group_by_class(labels, num_classes)]).sort().values
