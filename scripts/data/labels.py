# SPDX-License-Identifier: Apache-2.0
"""Values in a label volume: counted, and turned into class indices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scripts.errors import UserError
from scripts.prototypes.voxels import NO_CLASS

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


ROUNDING = 1e-3
"""A value this close to a whole number is that number: files of scaled or real numbers hold 0.9999 for 1."""


def declared_values(
    num_classes: int, label_values: Sequence[int] | None = None, ignore_value: int | None = None
) -> list[int]:
    """The value of each class, and whether the dataset's declarations fit together.

    Args:
        num_classes: K, background included.
        label_values: value of each class in the files; `None` for 0, 1, ..., K - 1.
        ignore_value: value of voxels that are no class; `None` for none.

    Raises:
        UserError: for values that are not K different whole numbers, or an `ignore_value` that is no whole number or
            that of a class.
    """
    values = list(range(num_classes)) if label_values is None else list(label_values)
    for value in [*values, *([] if ignore_value is None else [ignore_value])]:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"label_values and ignore_value must be whole numbers, got {value!r}.")
    if len(values) != num_classes:
        raise UserError(
            f"label_values has {len(values)} values, but label_names names {num_classes} classes: give each class the "
            "value that it has in the label files."
        )
    if len(set(values)) < len(values):
        raise UserError(f"label_values must give each class a value of its own, got {values}.")
    if ignore_value in values:
        raise UserError(
            f"ignore_value is {ignore_value}, which is also the value of class {values.index(ignore_value)}: take it "
            "out of one of the two."
        )
    return values


def to_classes(
    volume: torch.Tensor, values: Sequence[int], ignore_value: int | None = None
) -> tuple[torch.Tensor, float | None]:
    """The class of each voxel, and the first value that is none.

    Args:
        volume: values as in a file, any shape and type; within `ROUNDING` of whole numbers.
        values: value of each of K classes.
        ignore_value: value of voxels that take no part, or `None`.

    Returns:
        Classes in [0, K) or `NO_CLASS`, int8 or, for more than 128 classes, int16; and a value of `volume` that is not
        declared, or `None` if all of them are.
    """
    classes = {value: index for index, value in enumerate(values)}
    if ignore_value is not None:
        classes[ignore_value] = NO_CLASS
    volume = volume.float()
    declared = torch.tensor(sorted(classes), dtype=volume.dtype, device=volume.device)
    index_type = torch.int8 if len(values) <= 128 else torch.int16
    indices = torch.tensor([classes[value] for value in sorted(classes)], dtype=index_type, device=volume.device)
    rounded = volume.round()
    place = torch.bucketize(rounded, declared, out_int32=True).clamp(max=len(declared) - 1)
    # A NaN is equal to nothing, so it is undeclared too.
    undeclared = ~((declared[place] == rounded) & ((volume - rounded).abs() <= ROUNDING))
    return indices[place], volume[undeclared][0].item() if bool(undeclared.any()) else None
