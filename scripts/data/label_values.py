# SPDX-License-Identifier: Apache-2.0
"""From the values in a label file to class indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.errors import BundleError
from scripts.functional.voxels import NO_CLASS

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
        BundleError: for values that are not K different whole numbers, or an `ignore_value` that is no whole number or
            that of a class.
    """
    values = list(range(num_classes)) if label_values is None else list(label_values)
    for value in [*values, *([] if ignore_value is None else [ignore_value])]:
        if not isinstance(value, int) or isinstance(value, bool):
            raise BundleError(f"label_values and ignore_value must be whole numbers, got {value!r}.")
    if len(values) != num_classes:
        raise BundleError(
            f"label_values has {len(values)} values, but label_names names {num_classes} classes: give each class the "
            "value that it has in the label files."
        )
    if len(set(values)) < len(values):
        raise BundleError(f"label_values must give each class a value of its own, got {values}.")
    if ignore_value in values:
        raise BundleError(
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
