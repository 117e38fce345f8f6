# SPDX-License-Identifier: Apache-2.0
"""Sizes and memory of resampled volumes, and a progress bar for loops over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from scripts.progress import open_bar

FLOAT32, INT8 = 4, 1  # bytes


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the shape of a volume after resampling by MONAI's `Spacingd`, which keeps the outermost voxel centres.

    Args:
        shape: number of voxels along the axes R, A, S.
        spacing: present spacing, mm.
        target: new spacing, mm.
    """
    return tuple(round((n - 1) * s / t + 1) for n, s, t in zip(shape, spacing, target, strict=True))


def resampled_bytes(shape: Sequence[int], channels: int, with_label: bool) -> int:
    """Return the bytes of a cached training case: a float32 image and an 8-bit label.

    Args:
        shape: shape of the resampled image, from `resampled_shape`.
        channels: number of image channels.
        with_label: whether the label is cached too.
    """
    return math.prod(shape) * (FLOAT32 * channels + (INT8 if with_label else 0))


Progress = Callable[[Iterable, str], Iterable]
"""Wraps an iterable in a progress bar with a title."""


def progress_bar(items: Iterable, title: str) -> Iterable:
    """Show a progress bar on stderr."""
    return open_bar(items, desc=title, unit="case", leave=False)
