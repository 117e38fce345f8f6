# SPDX-License-Identifier: Apache-2.0
"""From one grid to another, in blocks: what a network says of a prepared volume, in the grid of its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

ALIGNED_VOXELS = 0.01
"""Grids are aligned if planes of one are planes of the other, to this many voxels over the whole volume."""

BLOCK_VOXELS = 2**22
"""Voxels of the target that are resampled at once; MONAI holds their coordinates in three numbers each."""


class BlockResampler:
    """Resample a volume that arrives in blocks along one of its axes, linearly, as MONAI's `Invertd` would the whole.

    Where the planes of both grids are parallel, as they are unless an affine has shear, a block is forgotten once
    everything that lies in it is done. Otherwise all blocks are kept until the last.

    Args:
        source_affine: `(4, 4)`, voxel index to mm, of the whole volume that arrives.
        source_shape: its `(D, H, W)`.
        axis: along which it arrives.
        target_affine: `(4, 4)` of the grid that is wanted.
        target_shape: its three sides.
        dtype: that coordinates are computed in; values are float32.
    """

    def __init__(
        self,
        source_affine: np.ndarray,
        source_shape: Sequence[int],
        axis: int,
        target_affine: np.ndarray,
        target_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.source_affine, self.source_side, self.axis = np.asarray(source_affine, float), source_shape[axis], axis
        self.target_affine, self.target_shape = np.asarray(target_affine, float), tuple(target_shape)
        to_source = np.linalg.inv(self.source_affine) @ self.target_affine
        row = to_source[axis]
        self.target_axis = int(np.abs(row[:3] * self.target_shape).argmax())
        others = [abs(row[a]) * self.target_shape[a] for a in range(3) if a != self.target_axis]
        self.aligned = max(others) <= ALIGNED_VOXELS
        # the middle of the other axes, for what little they add
        middle = sum(row[a] * (self.target_shape[a] - 1) / 2 for a in range(3) if a != self.target_axis)
        places = row[self.target_axis] * np.arange(self.target_shape[self.target_axis]) + row[3] + middle
        places = places.clip(0, self.source_side - 1)
        order = np.argsort(places, kind="stable")
        self.order, self.places = order, places[order]
        self.done = 0
        self.kept: torch.Tensor | None = None
        self.kept_from = 0

    def take(self, start: int, block: torch.Tensor) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Accept the next block and yield what can be said of the target.

        Args:
            start: where the block begins along `axis`; the end of the one before.
            block: `(K, ...)`.

        Yields:
            A place in the target, three slices, and its values `(K, ...)`, float32.
        """
        self.kept = block if self.kept is None else torch.cat([self.kept, block], dim=self.axis + 1)
        stop = start + block.shape[self.axis + 1]
        last = stop >= self.source_side
        ready = len(self.places) if last else self.done
        if self.aligned and not last:
            ready = int(np.searchsorted(self.places, stop - 1, side="right"))
        if ready > self.done:
            yield from self._resampled(self.order[self.done : ready])
            self.done = ready
        if self.aligned and not last:
            first_needed = int(self.places[self.done]) if self.done < len(self.places) else stop
            drop = min(first_needed, stop - 1) - self.kept_from
            if drop > 0:
                self.kept = self.kept.narrow(self.axis + 1, drop, self.kept.shape[self.axis + 1] - drop).clone()
                self.kept_from += drop

    def _resampled(self, indices: np.ndarray) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        affine = self._shifted(self.source_affine, self.axis, self.kept_from)
        source = MetaTensor(self.kept, affine=torch.as_tensor(affine))
        resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=self.dtype)
        begin, end = int(indices.min()), int(indices.max()) + 1
        plane = int(np.prod(self.target_shape)) // self.target_shape[self.target_axis]
        step = max(1, BLOCK_VOXELS // plane)
        for first in range(begin, end, step):
            count = min(step, end - first)
            size = [count if a == self.target_axis else side for a, side in enumerate(self.target_shape)]
            affine = self._shifted(self.target_affine, self.target_axis, first)
            values = resample(source, dst_affine=torch.as_tensor(affine), spatial_size=size)
            place = tuple(slice(first, first + count) if a == self.target_axis else slice(None) for a in range(3))
            yield place, values.as_subclass(torch.Tensor)

    @staticmethod
    def _shifted(affine: np.ndarray, axis: int, voxels: int) -> np.ndarray:
        """The affine of a volume without its first planes."""
        result = affine.copy()
        result[:3, 3] += affine[:3, axis] * voxels
        return result
