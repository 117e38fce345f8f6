# SPDX-License-Identifier: Apache-2.0
"""Sizes and memory of resampled volumes, and a progress bar over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

FLOAT32, INT8 = 4, 1  # bytes


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels of a volume at another spacing, as MONAI's `Spacingd` counts them: first and last centre stay in place.

    Args:
        shape: voxels, axes in the order of RAS.
        spacing: mm.
        target: mm.
    """
    return tuple(round((n - 1) * s / t + 1) for n, s, t in zip(shape, spacing, target, strict=True))


def resampled_bytes(shape: Sequence[int], channels: int, with_label: bool, roi_size: Sequence[int] = (1, 1, 1)) -> int:
    """Bytes of a cached training case: a float32 image padded to the patch, and its label in 8 bits.

    Args:
        shape: of `resampled_shape`.
        channels: of the image.
        with_label: whether its label is cached too.
        roi_size: patch, voxels.
    """
    voxels = math.prod(max(pair) for pair in zip(shape, roi_size, strict=True))
    return voxels * (FLOAT32 * channels + (INT8 if with_label else 0))


Progress = Callable[[Iterable, str], Iterable]
"""Wraps what is looped over in a progress bar with a title."""


def progress_bar(items: Iterable, title: str) -> Iterable:
    """A progress bar on stderr."""
    return tqdm(items, desc=title, unit="case", leave=False)
