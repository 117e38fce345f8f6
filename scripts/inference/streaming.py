# SPDX-License-Identifier: Apache-2.0
"""Sliding windows and resampling in blocks, so that memory use does not grow with the size of the volume."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Compose, Spacingd, SpatialResample
from monai.utils import GridSampleMode, ensure_tuple_rep


def longest_axis(shape: Sequence[int], window: Sequence[int]) -> int:
    """Return the axis with the largest ratio of volume to window; rows across this axis need the least memory."""
    return max(range(len(shape)), key=lambda axis: shape[axis] / window[axis])


def stitched_rows(
    image: torch.Tensor, inferer: SlidingWindowInferer, predictor: Callable[[torch.Tensor], torch.Tensor], axis: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Compute the result of `inferer` for the whole volume, in blocks from one end of `axis` to the other.

    All windows that begin at the same index of `axis` form a row. MONAI's inferer stitches each row. Where rows
    overlap, their results are averaged with the weights of their windows, as MONAI does within one volume. Only a few
    copies of the logits of one row are in memory at a time, however long the axis is.

    Args:
        image: `(C, D, H, W)`.
        inferer: inferer whose window (`roi_size`, three sides), overlap and blending are used. `sw_batch_size` is the
            maximum batch size: the windows of a row are divided into equal batches, because torch is slow for a batch
            of one small window (`python -m scripts.experiments.load patch-cost`).
        predictor: maps windows `(B, C, *roi_size)` to logits `(B, K, *roi_size)`.
        axis: 0, 1 or 2 for D, H or W.

    Yields:
        The index along `axis` where a block begins, and its logits `(K, ...)`. Blocks are adjacent and do not overlap.
    """
    side, window = image.shape[axis + 1], inferer.roi_size[axis]
    inferer = _with_even_batches(inferer, image.shape[1:], axis)
    if side <= window:
        yield 0, inferer(image[None], predictor)[0]
        return
    starts = _row_starts(side, window, ensure_tuple_rep(inferer.overlap, 3)[axis])
    across = [window if a == axis else image.shape[a + 1] for a in range(3)]
    row_weights = _summed_weights(across, inferer)
    total: torch.Tensor | None = None
    weights = row_weights
    for start, following in zip(starts, [*starts[1:], side], strict=True):
        row = inferer(image.narrow(axis + 1, start, window)[None], predictor)[0] * row_weights
        if total is None:
            total, weights = row, row_weights.clone()
        else:  # what remains of earlier rows begins where this row begins
            total = _laid_over(total, row, axis + 1)
            weights = _laid_over(weights, row_weights, axis)
        done = following - start
        yield start, total.narrow(axis + 1, 0, done) / weights.narrow(axis, 0, done)
        total = total.narrow(axis + 1, done, window - done)
        weights = weights.narrow(axis, done, window - done)


class LabelInferer(Inferer):
    """Compute the most probable class of each voxel without holding the logits of the whole volume in memory.

    The result equals the argmax of the output of `inferer`. It is stitched on the CPU, so a GPU holds only windows.

    Args:
        inferer: inferer whose window, overlap and blending are used.
    """

    def __init__(self, inferer: SlidingWindowInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return class indices `(B, 1, D, H, W)`, int16, of images `(B, C, D, H, W)`, on the device of the images.

        Args:
            inputs: images, on the device of the network.
            network: maps windows to logits `(B, K, *window)`.
            args: further positional arguments of the network.
            kwargs: further keyword arguments of the network.
        """

        def predictor(windows: torch.Tensor) -> torch.Tensor:
            return network(windows.to(inputs.device), *args, **kwargs).float().cpu()

        images = inputs.as_subclass(torch.Tensor).cpu()
        labels = torch.empty(len(images), 1, *images.shape[2:], dtype=torch.int16)
        axis = longest_axis(images.shape[2:], self.inferer.roi_size)
        for image, result in zip(images, labels[:, 0], strict=True):
            for start, logits in stitched_rows(image, self.inferer, predictor, axis):
                result.narrow(axis, start, logits.shape[axis + 1]).copy_(logits.argmax(dim=0))
        return labels.to(inputs.device)


def _with_even_batches(inferer: SlidingWindowInferer, shape: Sequence[int], axis: int) -> SlidingWindowInferer:
    """Copy the inferer, with a batch size that divides the windows of a row across `axis` into equal batches."""
    overlaps = ensure_tuple_rep(inferer.overlap, 3)
    windows = math.prod(
        len(_row_starts(max(shape[a], inferer.roi_size[a]), inferer.roi_size[a], overlaps[a]))
        for a in range(3)
        if a != axis
    )
    inferer = copy.copy(inferer)
    inferer.sw_batch_size = math.ceil(windows / math.ceil(windows / inferer.sw_batch_size))
    return inferer


def _laid_over(left: torch.Tensor, row: torch.Tensor, axis: int) -> torch.Tensor:
    """Add the unfinished part of the previous rows to the beginning of `row`."""
    row = row.clone()
    row.narrow(axis, 0, left.shape[axis]).add_(left)
    return row


def _row_starts(side: int, window: int, overlap: float) -> list[int]:
    """First indices of MONAI's windows along an axis that is at least as long as the window."""
    step = max(1, int(window * (1 - overlap)))
    return sorted({each[0].start for each in dense_patch_slices([side], [window], [step])})


def _summed_weights(shape: Sequence[int], inferer: SlidingWindowInferer) -> torch.Tensor:
    """Sum the weights of all windows over a volume of `shape` `(D, H, W)`; MONAI divides by this sum."""
    window = list(inferer.roi_size)
    padded = [max(side, w) for side, w in zip(shape, window, strict=True)]
    overlaps = ensure_tuple_rep(inferer.overlap, 3)
    steps = [
        w if side == w else max(1, int(w * (1 - overlap)))
        for side, w, overlap in zip(padded, window, overlaps, strict=True)
    ]
    weight = compute_importance_map(tuple(window), mode=inferer.mode, sigma_scale=inferer.sigma_scale)
    total = torch.zeros(padded)
    for place in dense_patch_slices(padded, window, steps):
        total[place] += weight
    begins = [(p - side) // 2 for p, side in zip(padded, shape, strict=True)]
    return total[tuple(slice(b, b + side) for b, side in zip(begins, shape, strict=True))]


ALIGNED_VOXELS = 0.01
"""Two grids count as aligned if their planes deviate by at most this many voxels over the whole volume."""

BLOCK_VOXELS = 2**22
"""Number of target voxels that are resampled at once; MONAI stores three coordinates for each of them."""


class BlockResampler:
    """Resample a volume that arrives in blocks along one axis, linearly, as MONAI's `Invertd` does for a whole volume.

    If the planes of both grids are parallel, a block is dropped once all target voxels inside it are computed. If they
    are not, all blocks are kept until the last one has arrived.

    Args:
        source_affine: `(4, 4)`, voxel index to mm, of the whole source volume.
        source_shape: `(D, H, W)` of the source volume.
        axis: axis of the source along which blocks arrive.
        target_affine: `(4, 4)`, voxel index to mm, of the target grid.
        target_shape: `(D, H, W)` of the target grid.
        dtype: type of the coordinates; voxel values are float32.
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
        # Use the middle of the other axes; they contribute almost nothing if the grids are aligned.
        middle = sum(row[a] * (self.target_shape[a] - 1) / 2 for a in range(3) if a != self.target_axis)
        places = row[self.target_axis] * np.arange(self.target_shape[self.target_axis]) + row[3] + middle
        places = places.clip(0, self.source_side - 1)
        order = np.argsort(places, kind="stable")
        self.order, self.places = order, places[order]
        self.done = 0
        self.kept: torch.Tensor | None = None
        self.kept_from = 0

    def take(self, start: int, block: torch.Tensor) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Accept the next block and yield the parts of the target that it completes.

        Args:
            start: index along `axis` where the block begins, which is the end of the previous block.
            block: `(K, ...)`.

        Yields:
            Three slices into the target, and the values `(K, ...)` there, float32.
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
        """Return the affine of a volume without its first `voxels` planes along `axis`."""
        result = affine.copy()
        result[:3, 3] += affine[:3, axis] * voxels
        return result


class BlockSpatialResample(SpatialResample):
    """`SpatialResample` in blocks for linear interpolation; other modes are passed to MONAI's class.

    It needs less memory than MONAI's class, which holds three 64-bit coordinates for each voxel of the result and
    64-bit copies of both volumes. The results are equal up to rounding, but `Invertd` cannot invert this transform.
    """

    def __call__(
        self,
        img: Any,
        dst_affine: torch.Tensor | None = None,
        spatial_size: Sequence[int] | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        linear = (
            str(mode or self.mode) == GridSampleMode.BILINEAR and str(padding_mode or self.padding_mode) == "border"
        )
        moved = dst_affine is not None and not np.allclose(np.asarray(img.affine), np.asarray(dst_affine), atol=1e-4)
        if not linear or not moved or align_corners or spatial_size is None or img.ndim != 4:
            return super().__call__(img, dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        plain, size = img.as_subclass(torch.Tensor), [int(side) for side in spatial_size]
        affine = np.asarray(dst_affine, float)
        axis = int(np.argmax(plain.shape[1:]))
        resampler = BlockResampler(np.asarray(img.affine), plain.shape[1:], axis, affine, size, torch.float64)
        step = max(2, BLOCK_VOXELS * plain.shape[axis + 1] // plain[0].numel())
        result = torch.empty(len(plain), *size)
        for start in range(0, plain.shape[axis + 1], step):
            block = plain.narrow(axis + 1, start, min(step, plain.shape[axis + 1] - start))
            for place, values in resampler.take(start, block):
                result[(slice(None), *place)] = values
        return MetaTensor(result, meta={**img.meta, "affine": torch.as_tensor(affine)})


def with_block_spacing(preprocessing: Any) -> Any:
    """Copy a `Compose` so that its `Spacingd` transforms work in blocks; return anything else unchanged."""
    if not isinstance(preprocessing, Compose):
        return preprocessing
    preprocessing = copy.deepcopy(preprocessing)
    for transform in preprocessing.flatten().transforms:
        if isinstance(transform, Spacingd):
            whole = transform.spacing_transform.sp_resample
            transform.spacing_transform.sp_resample = BlockSpatialResample(
                whole.mode, whole.padding_mode, whole.align_corners, whole.dtype
            )
    return preprocessing
