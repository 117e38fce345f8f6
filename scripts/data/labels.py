# SPDX-License-Identifier: Apache-2.0
"""Count the values in label volumes and convert them to class indices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scripts.errors import UserError
from scripts.prototypes.voxels import NO_CLASS

SLAB_VOXELS = 2**20  # voxels counted at once, so that counting needs only a few MiB more than the volume
MOST_VALUES = 256  # distinct values in a label file; a file with more is assumed to be an image


@dataclass
class Tally:
    """Number of voxels of each value.

    Attributes:
        whole: number of voxels per integer value, including values rounded to it.
        other: number of voxels per non-integer value, including NaN and infinity.
        rounded: number of voxels whose value was rounded.
        complete: false if counting stopped because there are more than `MOST_VALUES` values.
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
        result.other[math.nan if math.isnan(value) else value] += (
            number  # one key for all NaNs, because NaN is not equal to itself
        )
        return
    result.whole[round(value)] += number
    result.rounded += number if value != round(value) else 0


FEW_VALUES = 32
SAME_NEIGHBOURS = 0.7


def looks_like_label(channel: np.ndarray) -> bool:
    """Guess from the values of a volume whether it holds labels rather than intensities.

    All values of a label volume are integers, and one of two conditions holds: there are at most `FEW_VALUES` distinct
    values; or there are at most `MOST_VALUES`, and among pairs of neighbouring voxels that are not both 0, a fraction
    of at least `SAME_NEIGHBOURS` is equal. Noise never meets the second condition.

    Args:
        channel: `(X, Y, Z)`.
    """
    sample = channel.reshape(-1, order="A")[:: max(1, channel.size // 100_000)]
    if len(np.unique(sample)) > MOST_VALUES or not np.array_equal(sample, np.round(sample)):
        return False
    values = tally(channel)
    if values.other or not values.complete:
        return False
    if len(values.whole) <= FEW_VALUES:
        return True
    left, right = channel[:-1], channel[1:]
    filled = (left != 0) | (right != 0)
    return int((filled & (left == right)).sum()) >= SAME_NEIGHBOURS * int(filled.sum())


LARGEST_VALUE = 2**53
"""Largest label value. Labels are read as float64, which cannot represent every larger integer."""

ROUNDING = 1e-3
"""Values this close to an integer are rounded, because scaled or floating-point files may store 0.9999 for 1."""


def value_text(value: float) -> str:
    """Format a label value for messages: an integer with all its digits, any other number with seven."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.7g}"


LabelValues = Sequence[int | Sequence[int]]
"""Value of each class in label files; several values of a class are merged."""


def declared_values(
    num_classes: int, label_values: LabelValues | None = None, ignore_value: int | None = None
) -> list[int]:
    """Return the value with which each class is written to files, the first one of `merged_values`.

    Args:
        num_classes: see `merged_values`.
        label_values: see `merged_values`.
        ignore_value: see `merged_values`.

    Raises:
        UserError: as `merged_values`.
    """
    return [values[0] for values in merged_values(num_classes, label_values, ignore_value)]


def merged_values(
    num_classes: int, label_values: LabelValues | None = None, ignore_value: int | None = None
) -> list[list[int]]:
    """Return the values of each class in label files, after checking the dataset's declarations.

    Args:
        num_classes: K, background included.
        label_values: value of each class, or a list of values that form one class; `None` for 0, 1, ..., K - 1.
        ignore_value: value of voxels to ignore; `None` for none.

    Raises:
        UserError: if `label_values` does not give different integers up to `LARGEST_VALUE` for each of K classes, or if
            `ignore_value` is not such an integer or is the value of a class.

    Example:
        >>> merged_values(2, [0, [1, 2, 4]])
        [[0], [1, 2, 4]]
    """
    given = list(range(num_classes)) if label_values is None else list(label_values)
    classes = [list(value) if isinstance(value, Sequence) else [value] for value in given]
    if [] in classes:
        raise UserError(f"label_values must give at least one value for each class, got {label_values}.")
    values = [value for each in classes for value in each]
    for value in [*values, *([] if ignore_value is None else [ignore_value])]:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"label_values and ignore_value must be whole numbers, got {value!r}.")
        if abs(value) > LARGEST_VALUE:
            raise UserError(
                f"label_values and ignore_value must be from -2^53 to 2^53, where numbers are compared exactly, got "
                f"{value}: give the structure another value in the label files."
            )
    if len(classes) != num_classes:
        raise UserError(
            f"label_values has {len(classes)} values, but label_names names {num_classes} classes: give the value "
            "of each class in the label files."
        )
    if len(set(values)) < len(values):
        raise UserError(f"label_values must be different for each class, got {values}.")
    for index, each in enumerate(classes):
        if ignore_value in each:
            raise UserError(
                f"ignore_value is {ignore_value}, which is also a value of class {index}: remove one of the two."
            )
    return classes


def class_type(num_classes: int) -> torch.dtype:
    """Return the smallest type that holds class indices and `NO_CLASS`: int8, or int16 for more than 128 classes."""
    return torch.int8 if num_classes <= 128 else torch.int16


def to_classes(
    volume: torch.Tensor, values: LabelValues, ignore_value: int | None = None
) -> tuple[torch.Tensor, float | None]:
    """Convert label values to class indices, and find a value that is not declared.

    Args:
        volume: label values, any shape and type; values within `ROUNDING` of an integer are rounded.
        values: label value of each of K classes, or a list of values for a class.
        ignore_value: value of voxels to ignore, or `None`.

    Returns:
        Class indices in [0, K), or `NO_CLASS` for ignored voxels, int8 (int16 for more than 128 classes); and the first
        value of `volume` that is not declared, or `None` if all are.
    """
    classes = {
        v: index for index, value in enumerate(values) for v in (value if isinstance(value, Sequence) else [value])
    }
    if ignore_value is not None:
        classes[ignore_value] = NO_CLASS
    volume = volume.double()  # float32 cannot distinguish all integers above 2^24
    declared = torch.tensor(sorted(classes), dtype=volume.dtype, device=volume.device)
    indices = torch.tensor(
        [classes[value] for value in sorted(classes)], dtype=class_type(len(values)), device=volume.device
    )
    rounded = volume.round()
    place = torch.bucketize(rounded, declared, out_int32=True).clamp(max=len(declared) - 1)
    # NaN is not equal to any value, so it counts as undeclared.
    undeclared = ~((declared[place] == rounded) & ((volume - rounded).abs() <= ROUNDING))
    return indices[place], volume[undeclared][0].item() if bool(undeclared.any()) else None
