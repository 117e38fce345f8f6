# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage (MHA, MHD) through ITK, and what ITK does not tell of their headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import itk
import numpy as np

from scripts.errors import UserError
from scripts.images.header import (
    LPS_TO_RAS,
    METAIMAGE,
    NRRD,
    ReadVoxels,
    VolumeHeader,
    ending_of,
    in_lower_case,
    shape_and_channels,
)

LONGEST = 1 << 20  # bytes; a header is a few hundred
RANGE_KINDS = re.compile(r"list|vector|point|normal|color|complex|quaternion|matrix|stub|scalar", re.IGNORECASE)
NO_DIRECTION = ("none", "nan")


def is_oriented(path: str) -> bool:
    """Whether the header says where the axes point.

    A NRRD must name its space (`space: left-posterior-superior`) and have `space directions`; a MetaImage must have
    one of the names of its matrix.
    """
    fields = _fields(path)
    if ending_of(path) in NRRD:
        return "space" in fields and "space directions" in fields
    return not {"transformmatrix", "rotation", "orientation"}.isdisjoint(fields)


def data_files(path: str) -> list[str]:
    """Names of the files, beside a MetaImage header, that hold its voxels."""
    name = _fields(path).get("elementdatafile", "LOCAL")
    return [] if name.upper().split()[0] in ("LOCAL", "LIST") or Path(name).is_absolute() else [name]


def with_list_axis(path: str) -> bytes | None:
    """A detached NRRD header in which the one axis without a direction is of kind `list`; `None` if that is needless.

    ITK takes an axis for channels only by its kind, which some writers leave out, and then counts four axes of space.
    """
    if ending_of(path) not in NRRD:
        return None
    fields, lines = _fields(path), _lines(path)
    axes = re.findall(r"\([^)]*\)|\S+", fields.get("space directions") or fields.get("spacings", ""))
    kinds = fields.get("kinds", "").split() or ["domain"] * len(axes)
    without = [axis for axis, direction in enumerate(axes) if direction.lower() in NO_DIRECTION]
    if len(without) != 1 or len(kinds) != len(axes) or RANGE_KINDS.search(kinds[without[0]]):
        return None
    kinds = ["list" if axis == without[0] else "domain" for axis in range(len(axes))]
    header = [line for line in lines if not line.lower().startswith(("kinds:", "data file:", "datafile:"))]
    header.append(f"kinds: {' '.join(kinds)}")
    data = fields.get("data file") or fields.get("datafile")
    if data is None:
        header += [f"line skip: {len(lines) + 1}", f"data file: {Path(path).resolve()}"]
    else:
        header.append(f"data file: {Path(path).resolve().parent / data}")
    return ("\n".join(header) + "\n").encode("utf-8", "surrogateescape")


def _lines(path: str) -> list[str]:
    """A NRRD header ends with an empty line (or the file), a MetaImage's with the name of its data."""
    with open(path, "rb") as file:
        text = file.read(LONGEST).decode("utf-8", "surrogateescape")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if ending_of(path) in NRRD:
        return list(takewhile(bool, lines))
    before = list(takewhile(lambda line: not line.lower().startswith("elementdatafile"), lines))
    return lines[: len(before) + 1]


def _fields(path: str) -> dict[str, str]:
    """Names in lower case, values as they stand."""
    mark = ":" if ending_of(path) in NRRD else "="
    pairs = (line.partition(mark) for line in _lines(path) if not line.startswith("#"))
    return {name.strip().lower(): value.strip() for name, found, value in pairs if found}


WRAPPED = {"uint8": "UC", "uint16": "US", "int16": "SS", "float32": "F", "float64": "D"}
"""Types of which ITK's Python package has images; others are read as double, which holds integers up to 2^53."""


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Header, and a function that reads the voxels.

    Raises:
        UserError: for colours or complex numbers, or for axes that are no volume.
        RuntimeError: from ITK, for a file that it cannot read.
    """
    with _as_itk_wants_it(path) as file:
        io = _image_io(file)
        axes = [io.GetDimensions(axis) for axis in range(io.GetNumberOfDimensions())]
        kind = io.GetPixelTypeAsString(io.GetPixelType())
        if kind in ("rgb", "rgba", "complex"):
            name = "complex numbers" if kind == "complex" else "colours (RGB)"
            raise UserError(f"{path} holds {name}: convert it to one number a voxel, or a channel for each.")
        shape, channels = shape_and_channels(path, axes, io.GetNumberOfComponents())
        header = VolumeHeader(
            path, shape, channels, LPS_TO_RAS @ lps_affine(io), stored_type(io).name, is_oriented(path)
        )

    def voxels() -> np.ndarray:
        with _as_itk_wants_it(path) as file:
            array = read_array(file, _image_io(file), header.dtype)
        if array.ndim == 5:
            array = np.moveaxis(array, 4, 1)  # a fourth axis is one of channels
        return array.reshape(channels, *shape)

    return header, voxels


def read_array(file: str, io: itk.ImageIOBase, stored: str) -> np.ndarray:
    """Voxels `(components, X, Y, ...)` in their stored type.

    Args:
        file: path that `io` can read.
        io: knows the number of axes; ITK's reader parses the header with it.
        stored: NumPy name of the type of the numbers in the file.
    """
    component = getattr(itk, WRAPPED.get(stored, "D"))
    # Always an image of vectors: of those every number of components exists.
    reader = itk.ImageFileReader[itk.VectorImage[component, io.GetNumberOfDimensions()]].New(FileName=file, ImageIO=io)
    reader.Update()
    return itk.array_from_image(reader.GetOutput()).T.astype(stored, copy=False)


def stored_type(io: itk.ImageIOBase) -> np.dtype:
    """NumPy's type for the numbers in the file."""
    name = io.GetComponentTypeAsString(io.GetComponentType())
    kind = "u" if name.startswith("unsigned") else "f" if name in ("float", "double") else "i"
    return np.dtype(f"{kind}{io.GetComponentSize()}")


def lps_affine(io: itk.ImageIOBase) -> np.ndarray:
    """`(4, 4)`, voxel index to mm, LPS, of the first three axes; a missing third one is perpendicular, 1 mm."""
    affine = np.eye(4)
    for axis in range(min(3, io.GetNumberOfDimensions())):
        direction = np.asarray(io.GetDirection(axis))[:3]
        affine[: len(direction), axis] = direction * io.GetSpacing(axis)
        affine[axis, 3] = io.GetOrigin(axis)
    return affine


def _image_io(file: str) -> itk.ImageIOBase:
    io = (itk.MetaImageIO if ending_of(file) in METAIMAGE else itk.NrrdImageIO).New()
    if not io.CanReadFile(file):
        raise ValueError("its header is not of the format that its ending promises")
    io.SetFileName(file)
    io.ReadImageInformation()
    return io


@contextmanager
def _as_itk_wants_it(path: str) -> Iterator[str]:
    """The path itself, or one in a folder of its own that lives as long as the context."""
    repaired = with_list_axis(path)
    if repaired is None:
        with in_lower_case(path, beside=data_files(path)) as file:
            yield file
        return
    with TemporaryDirectory() as folder:
        header = Path(folder, "header.nhdr")
        header.write_bytes(repaired)
        yield str(header)
