# SPDX-License-Identifier: Apache-2.0
"""Choose the slices of a case whose correction teaches most: those with the largest expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

SAME_SPACING = 1.01
"""Voxel sizes whose ratio is smaller than this are equal."""

TIE = 0.05
"""A slice this close to the middle between two voxels of the training grid may be missed by rounding, in voxels."""


@dataclass(frozen=True)
class ChosenSlices:
    """Slices of a volume.

    Attributes:
        axis: of the file, 0, 1 or 2, across which the slices lie.
        indices: ascending, from 0.
        errors: expected error of each: the sum of the normalised entropies of its voxels.
        total: expected error of the whole volume.
    """

    axis: int
    indices: list[int]
    errors: list[float]
    total: float

    def holds(self, shape: Sequence[int]) -> np.ndarray:
        """Which voxels of the volume are in one of the slices: bool, 1 along the other axes, to be broadcast."""
        along = np.zeros(shape[self.axis], bool)
        along[self.indices] = True
        return along.reshape([-1 if axis == self.axis else 1 for axis in range(3)])


def slice_axis(affine: np.ndarray) -> int:
    """The axis of a file with the largest voxel size, across which people draw; the last one if sizes are equal.

    Args:
        affine: `(4, 4)`, voxel index to mm.

    Example:
        >>> slice_axis(np.diag([1.0, 3.0, 1.0, 1.0])), slice_axis(np.diag([2.0, 2.0, 1.0, 1.0])), slice_axis(np.eye(4))
        (1, 1, 2)
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.flatnonzero(spacing * SAME_SPACING >= spacing.max())[-1])


def usable_slices(affine: np.ndarray, axis: int, count: int, spacing: Sequence[float]) -> np.ndarray:
    """Indices of the slices that remain when the volume is resampled to the training grid by nearest neighbours.

    A coarser grid leaves slices out, and a label drawn on one of them would be lost.

    Args:
        affine: `(4, 4)`, voxel index to mm, of the file.
        axis: of the file.
        count: slices along it.
        spacing: of the training grid, mm, along R, A and S.
    """
    body_axis, direction = nibabel.io_orientation(affine)[axis]
    step = spacing[int(body_axis)] / np.linalg.norm(affine[:3, axis])
    if step <= SAME_SPACING:
        return np.arange(count)
    places = np.arange(0, count - 0.5, step)  # the training grid begins at the first voxel in R, A and S
    places = places[np.abs(places % 1 - 0.5) > TIE]
    indices = np.unique(places.round().astype(int))
    return indices if direction > 0 else np.sort(count - 1 - indices)


def choose_slices(
    uncertainty: np.ndarray, affine: np.ndarray, number: int, spacing: Sequence[float] | None = None
) -> ChosenSlices:
    """The slices with the largest expected error, spaced apart.

    Neighbouring slices look alike, so a slice is passed over if it is closer to a chosen one than half the distance
    that evenly spaced slices would have, over the part of the volume that holds 98 % of the expected error. If too few
    remain, that distance is halved.

    Args:
        uncertainty: normalised entropy of each voxel `(X, Y, Z)`, in [0, 1], on the grid of the file.
        affine: `(4, 4)`, voxel index to mm.
        number: of slices.
        spacing: of the training grid, mm, along R, A and S; `None`: every slice may be chosen.

    Returns:
        At most `number` slices; fewer only if the volume has fewer.
    """
    axis = slice_axis(affine)
    profile = uncertainty.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
    count = len(profile)
    usable = np.arange(count) if spacing is None else usable_slices(affine, axis, count, spacing)
    cumulated = np.cumsum(profile) / max(float(profile.sum()), np.finfo(float).tiny)
    extent = int(np.searchsorted(cumulated, 0.99)) - int(np.searchsorted(cumulated, 0.01)) + 1
    order = usable[np.argsort(-profile[usable], kind="stable")]
    distance = max(1, extent // (2 * number))
    while True:
        chosen: list[int] = []
        for index in order.tolist():
            if len(chosen) < number and all(abs(index - other) >= distance for other in chosen):
                chosen.append(index)
        if len(chosen) == min(number, len(usable)) or distance == 1:
            break
        distance //= 2
    chosen.sort()
    return ChosenSlices(axis, chosen, profile[chosen].tolist(), float(profile.sum()))
