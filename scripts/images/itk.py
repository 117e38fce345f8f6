# SPDX-License-Identifier: Apache-2.0
"""Read NRRD and MetaImage (MHA, MHD) with ITK, and the parts of their headers that ITK does not report.

Single modules of ITK are imported, and only when a file needs them. `itk.NrrdImageIO` would load all formats and
filters of ITK, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

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
from scripts.images.label_names import of_nrrd

if TYPE_CHECKING:
    from itk.itkImageIOBasePython import itkImageIOBase

LONGEST = 1 << 20  # bytes; typical headers have a few hundred
RANGE_KINDS = re.compile(r"list|vector|point|normal|color|complex|quaternion|matrix|stub|scalar", re.IGNORECASE)
NO_DIRECTION = ("none", "nan")


def is_oriented(path: str) -> bool:
    """Whether the header states the directions of the axes.

    A NRRD must have a `space` (such as `left-posterior-superior`) and `space directions`. A MetaImage must have one of
    the fields that give its direction matrix.
    """
    fields = _fields(path)
    if ending_of(path) in NRRD:
        return "space" in fields and "space directions" in fields
    return not {"transformmatrix", "rotation", "orientation"}.isdisjoint(fields)


def segments(path: str) -> dict[int, str]:
    """Return the names that 3D Slicer gives to the label values of a NRRD; empty for other files."""
    return of_nrrd(_fields(path)) if ending_of(path) in NRRD else {}


def data_files(path: str) -> list[str]:
    """Return the names of the files in the same folder that contain the voxels of a MetaImage header."""
    name = _fields(path).get("elementdatafile", "LOCAL")
    return [] if name.upper().split()[0] in ("LOCAL", "LIST") or Path(name).is_absolute() else [name]


def with_list_axis(path: str) -> bytes | None:
    """Return a detached NRRD header that marks the only axis without a direction as `list`; `None` if not needed.

    ITK recognises a channel axis by its `kind`. Some programs omit it, and ITK then reads four spatial axes.
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
    """Return the header's lines: a NRRD header ends at an empty line, a MetaImage header with `ElementDataFile`."""
    with open(path, "rb") as file:
        text = file.read(LONGEST).decode("utf-8", "surrogateescape")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if ending_of(path) in NRRD:
        return list(takewhile(bool, lines))
    before = list(takewhile(lambda line: not line.lower().startswith("elementdatafile"), lines))
    return lines[: len(before) + 1]


def _fields(path: str) -> dict[str, str]:
    """Return the header's fields, with names in lower case and values unchanged."""
    mark = ":" if ending_of(path) in NRRD else "="
    pairs = (line.partition(mark) for line in _lines(path) if not line.startswith("#"))
    return {name.strip().lower(): value.strip() for name, found, value in pairs if found}


WRAPPED = {"uint8": "UC", "uint16": "US", "int16": "SS", "float32": "F", "float64": "D"}
"""Types that ITK's Python package can read; others are read as double, which is exact for integers up to 2^53."""


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Read the header; return it with a function that reads the voxels.

    Raises:
        UserError: for colours, complex numbers, or axes that do not form a volume.
        RuntimeError: from ITK, for a file that it cannot read.
    """
    with _as_itk_wants_it(path) as file:
        io = _image_io(file)
        axes = [io.GetDimensions(axis) for axis in range(io.GetNumberOfDimensions())]
        kind = io.GetPixelTypeAsString(io.GetPixelType())
        if kind in ("rgb", "rgba", "complex"):
            name = "complex numbers" if kind == "complex" else "colours (RGB)"
            raise UserError(f"{path} contains {name}: convert it to one number per voxel, or to one channel for each.")
        shape, channels = shape_and_channels(path, axes, io.GetNumberOfComponents())
        header = VolumeHeader(
            path, shape, channels, LPS_TO_RAS @ lps_affine(io), stored_type(io).name, is_oriented(path), segments(path)
        )

    def voxels() -> np.ndarray:
        with _as_itk_wants_it(path) as file:
            array = read_array(file, _image_io(file), header.dtype)
        if array.ndim == 5:
            array = np.moveaxis(array, 4, 1)  # the fourth axis holds the channels
        return array.reshape(channels, *shape)

    return header, voxels


def read_array(file: str, io: itkImageIOBase, stored: str) -> np.ndarray:
    """Read the voxels `(components, X, Y, ...)` in their stored type.

    Args:
        file: path that `io` can read.
        io: ITK's reader for the format, with the header read.
        stored: NumPy name of the type of the stored numbers.
    """
    from itk import itkImageFileReaderPython, itkPyBufferPython

    letters, kind = (WRAPPED[stored], stored) if stored in WRAPPED else ("D", "float64")
    # A vector image works for any number of components, even one.
    name = f"VI{letters}{io.GetNumberOfDimensions()}"
    reader = getattr(itkImageFileReaderPython, f"itkImageFileReader{name}").New()
    reader.SetFileName(file)
    reader.SetImageIO(io)
    reader.Update()
    image = reader.GetOutput()
    bytes_of_voxels = getattr(itkPyBufferPython, f"itkPyBuffer{name}")._GetArrayViewFromImage(image)
    sides = [int(side) for side in image.GetBufferedRegion().GetSize()]
    array = np.array(bytes_of_voxels).view(kind).reshape(*reversed(sides), image.GetNumberOfComponentsPerPixel())
    return array.T.astype(stored, copy=False)


def stored_type(io: itkImageIOBase) -> np.dtype:
    """Return the NumPy type of the stored numbers."""
    name = io.GetComponentTypeAsString(io.GetComponentType())
    kind = "u" if name.startswith("unsigned") else "f" if name in ("float", "double") else "i"
    return np.dtype(f"{kind}{io.GetComponentSize()}")


def lps_affine(io: itkImageIOBase) -> np.ndarray:
    """Return the affine `(4, 4)` from voxel index to mm (LPS); a missing third axis is perpendicular with 1 mm."""
    affine = np.eye(4)
    for axis in range(min(3, io.GetNumberOfDimensions())):
        direction = np.asarray(io.GetDirection(axis))[:3]
        affine[: len(direction), axis] = direction * io.GetSpacing(axis)
        affine[axis, 3] = io.GetOrigin(axis)
    return affine


def _image_io(file: str) -> itkImageIOBase:
    io: itkImageIOBase
    if ending_of(file) in METAIMAGE:
        from itk.itkMetaImageIOPython import itkMetaImageIO

        io = itkMetaImageIO.New()
    else:
        from itk.itkNrrdImageIOPython import itkNrrdImageIO

        io = itkNrrdImageIO.New()
    if not io.CanReadFile(file):
        raise ValueError("its header does not have the format of its ending")
    io.SetFileName(file)
    io.ReadImageInformation()
    return io


@contextmanager
def _as_itk_wants_it(path: str) -> Iterator[str]:
    """Yield a path that ITK can read: the path itself, or a temporary link or corrected header."""
    repaired = with_list_axis(path)
    if repaired is None:
        with in_lower_case(path, beside=data_files(path)) as file:
            yield file
        return
    with TemporaryDirectory() as folder:
        header = Path(folder, "header.nhdr")
        header.write_bytes(repaired)
        yield str(header)
