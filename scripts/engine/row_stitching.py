# SPDX-License-Identifier: Apache-2.0
"""MONAI's sliding window, a row of windows at a time, so that no stitched volume of all classes is ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep


def longest_axis(shape: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which a volume has the most windows: a row across it takes the least memory."""
    return max(range(len(shape)), key=lambda axis: shape[axis] / window[axis])


def stitched_rows(
    image: torch.Tensor, inferer: SlidingWindowInferer, predictor: Callable[[torch.Tensor], torch.Tensor], axis: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """What `inferer` gives for the whole volume, in blocks from one end of `axis` to the other.

    All windows that begin at one place of `axis` are a row. MONAI's inferer stitches each row; where rows overlap,
    their results are averaged with the weights of their windows, as MONAI would within one volume. In memory are the
    logits of one row, a few times over, however long the axis.

    Args:
        image: `(C, D, H, W)`.
        inferer: with `roi_size` of three sides; its window, overlap and blending are used.
        predictor: windows `(B, C, *roi_size)` to logits `(B, K, *roi_size)`.
        axis: 0, 1 or 2, of D, H, W.

    Yields:
        The place along `axis` where a block begins, and its logits `(K, ...)`. Blocks follow each other without a gap.
    """
    side, window = image.shape[axis + 1], inferer.roi_size[axis]
    if side <= window:
        yield 0, inferer(image[None], predictor)[0]
        return
    starts = _row_starts(side, window, ensure_tuple_rep(inferer.overlap, 3)[axis])
    across = [window if a == axis else image.shape[a + 1] for a in range(3)]
    row_weights = _summed_weights(across, inferer)
    total = weights = None
    for start, following in zip(starts, [*starts[1:], side], strict=True):
        row = inferer(image.narrow(axis + 1, start, window)[None], predictor)[0] * row_weights
        if total is None:
            total, weights = row, row_weights.clone()
        else:  # both begin where the row before had its first place that this row shares
            total = _laid_over(total, row, axis + 1)
            weights = _laid_over(weights, row_weights, axis)
        done = following - start
        yield start, total.narrow(axis + 1, 0, done) / weights.narrow(axis, 0, done)
        total = total.narrow(axis + 1, done, window - done)
        weights = weights.narrow(axis, done, window - done)


def _laid_over(left: torch.Tensor, row: torch.Tensor, axis: int) -> torch.Tensor:
    """`row` with what is left of the rows before added to its beginning."""
    row = row.clone()
    row.narrow(axis, 0, left.shape[axis]).add_(left)
    return row


def _row_starts(side: int, window: int, overlap: float) -> list[int]:
    """Where MONAI's windows begin along an axis that is longer than the window."""
    step = max(1, int(window * (1 - overlap)))
    return sorted({each[0].start for each in dense_patch_slices([side], [window], [step])})


def _summed_weights(shape: Sequence[int], inferer: SlidingWindowInferer) -> torch.Tensor:
    """Sum of the weights of all windows of a volume of `shape` `(D, H, W)`, which MONAI divides by."""
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
