# SPDX-License-Identifier: Apache-2.0
"""The values in a label volume as whole numbers, and what is none of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from scripts.data.label_values import ROUNDING

SLAB_VOXELS = 2**20  # voxels counted at once: what counting needs beside the volume stays a few MiB
MOST_VALUES = 256  # distinct values of one label file; more mean an image


@dataclass
class Tally:
    """Voxels of each value.

    Attributes:
        whole: whole number, or what is rounded to it, to its voxels.
        other: value that is no whole number (NaN and infinity too) to its voxels.
        rounded: voxels whose value was rounded.
        complete: false if there are more than `MOST_VALUES` values; counting stopped there.
    """

    whole: Counter[int] = field(default_factory=Counter)
    other: Counter[float] = field(default_factory=Counter)
    rounded: int = 0
    complete: bool = True


def tally(voxels: np.ndarray) -> Tally:
    """Count the values of a volume of any shape and type, a slab at a time."""
    result = Tally()
    rows = voxels.reshape(-1) if voxels.flags.c_contiguous else voxels.reshape(-1, order="F")
    for start in range(0, len(rows), SLAB_VOXELS):
        values, numbers = np.unique(rows[start : start + SLAB_VOXELS], return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            _add(result, value, number)
            if len(result.whole) + len(result.other) > MOST_VALUES:
                result.complete = False
                return result
    return result


def _add(result: Tally, value: float, number: int) -> None:
    if not math.isfinite(value) or abs(value - round(value)) > ROUNDING:
        result.other[math.nan if math.isnan(value) else value] += number  # one NaN: no two of them are equal
        return
    result.whole[round(value)] += number
    result.rounded += number if value != round(value) else 0
