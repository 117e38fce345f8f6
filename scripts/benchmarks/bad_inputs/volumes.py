# SPDX-License-Identifier: Apache-2.0
"""Volumes that can be read and are not what they should be: shapes, channels, types, grids, values."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable

import numpy as np

from scripts.benchmarks.bad_inputs.ground import AFFINE, SHAPE, Ground, classes, intensities, save
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, INFER, NEW, TRAIN, Kind, Spoil, every

IMAGES, LABELS = (TRAIN, EVALUATE, INFER, CHECK), (TRAIN, EVALUATE, CHECK)
Make = Callable[[Ground], np.ndarray]


def _image(make: Make) -> Spoil:
    def spoil(ground: Ground) -> str:
        file = ground.image(ground.victim())
        save(file, make(ground))
        return file.name

    return spoil


def _label(make: Make) -> Spoil:
    def spoil(ground: Ground) -> str:
        file = ground.label(ground.victim())
        save(file, make(ground))
        return f"labels/{file.name}"

    return spoil


def _all_labels(make: Make) -> Spoil:
    def spoil(ground: Ground) -> str:
        for file in (ground.data / "labels").iterdir():
            save(file, make(ground))
        return ""

    return spoil


def _with_values(*values: float) -> Make:
    def make(ground: Ground) -> np.ndarray:
        array = intensities(ground.seed).astype(np.float64)
        for _ in range(ground.draw.choice((1, 50))):
            array[tuple(ground.draw.randrange(side) for side in SHAPE)] = ground.draw.choice(values)
        return array

    return make


def _with_channels(*numbers: int) -> Make:
    return lambda ground: np.stack([intensities(c) for c in range(ground.draw.choice(numbers))], axis=-1)


def _of_type(*kinds: type) -> Make:
    return lambda ground: intensities(ground.seed).clip(0, 100).astype(kinds[ground.seed % len(kinds)])


def _colours(ground: Ground) -> np.ndarray:
    return np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def _one_slice(ground: Ground) -> np.ndarray:
    array, axis = intensities(ground.seed), ground.draw.randrange(3)
    return np.take(array, [5], axis)


def _one_slice_with_label(ground: Ground) -> str:
    name, axis = ground.victim(), ground.draw.randrange(3)
    save(ground.image(name), np.take(intensities(ground.seed), [7], axis))
    save(ground.label(name), np.take(classes(), [7], axis))
    return ground.image(name).name


def _label_with(value: float) -> Make:
    def make(ground: Ground) -> np.ndarray:
        label = classes().astype(np.float32)
        label[tuple(ground.draw.randrange(side) for side in SHAPE)] = value
        return label

    return make


def _affine(change: Callable[[Ground, np.ndarray], None], label: bool) -> Spoil:
    def spoil(ground: Ground) -> str:
        name, affine = ground.victim(), AFFINE.copy()
        change(ground, affine)
        if label:
            save(ground.label(name), classes(), affine)
            return f"labels/{ground.label(name).name}"
        save(ground.image(name), intensities(0), affine)
        return ground.image(name).name

    return spoil


def _shift(ground: Ground, affine: np.ndarray) -> None:
    affine[ground.draw.randrange(3), 3] += ground.draw.choice((-100.0, 20.0))


def _scale(ground: Ground, affine: np.ndarray) -> None:
    affine[:3, ground.draw.randrange(3)] *= ground.draw.choice((2.0, 0.5))


def _mirror(ground: Ground, affine: np.ndarray) -> None:
    affine[:, ground.draw.randrange(3)] *= -1.0


def _header(offset: int, form: str, *values: float) -> Spoil:
    """Write numbers into the header's bytes, as nibabel would not."""

    def spoil(ground: Ground) -> str:
        file = ground.image(ground.victim())
        content = bytearray(gzip.decompress(file.read_bytes()))
        struct.pack_into(form, content, offset, *values)
        file.write_bytes(gzip.compress(bytes(content)))
        return file.name

    return spoil


def _twice(ground: Ground) -> np.ndarray:
    return np.stack([classes()] * 2, axis=-1)


def _smaller_label(ground: Ground) -> np.ndarray:
    cut = [slice(ground.draw.choice((0, 1)), None) for _ in SHAPE]
    return classes()[1:][tuple(cut)]


NAN, INF = float("nan"), float("inf")
SROW_X, DIM_1 = 280, 42  # offsets in a NIfTI-1 header

NO_SIZE = every("no size", *IMAGES, NEW)

KINDS = (
    Kind("NaN in an image", _image(_with_values(NAN)), every("NaN|finite", *IMAGES)),
    Kind("infinity in an image", _image(_with_values(INF, -INF)), every("NaN|infinity|finite", *IMAGES)),
    Kind("numbers beyond 32 bits in an image", _image(_with_values(1e300, -1e39)), every("", *IMAGES)),
    Kind("image with channels that nobody declared", _image(_with_channels(2, 3, 5)), every("channel", *IMAGES)),
    Kind("trailing 4th axis of one", _image(_with_channels(1)), right=(TRAIN, EVALUATE, INFER, CHECK, NEW)),
    Kind("complex numbers", _image(_of_type(np.complex64, np.complex128)), every("complex", *IMAGES, NEW)),
    Kind("colours", _image(_colours), every("colours", *IMAGES, NEW)),
    Kind("integers and real numbers of other widths", _image(_of_type(np.uint8, np.uint16, np.float64, np.int32)),
         right=(TRAIN, EVALUATE, INFER, NEW), inputs=8),
    Kind("image of one slice, label of many", _image(_one_slice), every("voxels", TRAIN, CHECK, NEW)),
    Kind("volume of one slice", _one_slice_with_label, every("single slices", NEW),
         right=(TRAIN, EVALUATE, INFER, CHECK)),
    Kind("image of one value", _image(lambda ground: np.full(SHAPE, ground.draw.choice((0, -1000)), np.int16)),
         every("one value|same value|constant", CHECK), right=(TRAIN, INFER)),
    Kind("affine without size along an axis", _header(SROW_X, "<4f", 0.0, 0.0, 0.0, 0.0), NO_SIZE),
    Kind("NaN in the affine", _header(SROW_X, "<4f", NAN, 0.0, 0.0, 0.0), NO_SIZE),
    Kind("no voxels along an axis", _header(DIM_1, "<3h", 18, 0, 16), every("", *IMAGES, NEW)),
    Kind("negative number of voxels", _header(DIM_1, "<3h", 18, -17, 16), every("", *IMAGES, NEW)),
    Kind("label of another shape", _label(_smaller_label), every("voxels|shape", TRAIN, CHECK, NEW)),
    Kind("label at another place", _affine(_shift, True), every("mm", TRAIN, CHECK, NEW)),
    Kind("label of another spacing", _affine(_scale, True), every("mm", TRAIN, CHECK, NEW)),
    Kind("label mirrored by its header", _affine(_mirror, True), every("mm", TRAIN, CHECK, NEW)),
    Kind("label of 0 and 255", _label(lambda ground: (classes() > 0).astype(np.uint8) * 255), every("255", *LABELS)),
    Kind("labels of 0 and 255 everywhere", _all_labels(lambda ground: (classes() > 0).astype(np.uint8) * 255),
         right=(NEW,)),
    Kind("label of 0.9999", _label(lambda ground: classes() * np.float32(0.9999)), right=(TRAIN, EVALUATE, CHECK, NEW)),
    Kind("label between whole numbers", _label(_label_with(0.5)), every("0.5", *LABELS, NEW)),
    Kind("NaN in a label", _label(_label_with(NAN)), every("(?i)nan", *LABELS, NEW)),
    Kind("negative label", _label(_label_with(-1)), every("-1", *LABELS)),
    Kind("label value that nobody declared", _label(_label_with(7)), every("7", *LABELS)),
    Kind("label with channels", _label(_twice), every("channel", TRAIN, CHECK, NEW)),
    Kind("empty label", _label(lambda ground: np.zeros(SHAPE, np.uint8)), right=(TRAIN, EVALUATE, CHECK, NEW)),
    Kind("all labels empty", _all_labels(lambda ground: np.zeros(SHAPE, np.uint8)), every("", NEW, CHECK)),
)  # fmt: skip
