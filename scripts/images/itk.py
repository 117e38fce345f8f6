# SPDX-License-Identifier: Apache-2.0
"""Read NRRD and MetaImage (MHA, MHD) with ITK, and the parts of their headers that ITK does not report.

Single modules of ITK are imported, and only when a file needs them. `itk.NrrdImageIO` would load all formats and
filters of ITK, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from scripts.errors import UserError
from scripts.files import link_or_copy
from scripts.images.header import (
    LPS_TO_RAS,
    METAIMAGE,
    NRRD,
    ReadVoxels,
    VolumeHeader,
    ending_of,
    shape_and_channels,
)
from scripts.images.label_names import of_nrrd

if TYPE_CHECKING:
    from itk.itkImageIOBasePython import itkImageIOBase

LONGEST = 1 << 20  # bytes; typical headers have a few hundred
RANGE_KINDS = re.compile(r"list|vector|point|normal|color|complex|quaternion|matrix|stub|scalar", re.IGNORECASE)
NO_DIRECTION = ("none", "nan")
ANATOMICAL = re.compile(r"(right|left)-(anterior|posterior)-superior(-time)?|[rl][ap]st?", re.IGNORECASE)
PREFIXES = {"": ("", 1000.0), "centi": ("c", 10.0), "milli": ("m", 1.0), "micro": ("u", 0.001), "nano": ("n", 1e-6)}
MILLIMETRES = {
    **{f"{short}m": factor for short, factor in PREFIXES.values()},
    **{f"{long}{word}": PREFIXES[long][1] for long in PREFIXES for word in ("meter", "meters", "metre", "metres")},
    **dict.fromkeys(("micron", "microns"), 0.001),
    **dict.fromkeys(("", "?", "???", "unknown", "none"), 1.0),
}
"""Factors from units of length to mm; lengths without a unit are taken as mm."""
DATA_FIELD = re.compile(r"(data ?file:|ElementDataFile\s*=)", re.IGNORECASE)


def is_oriented(path: str) -> bool:
    """Whether the header states the directions of the axes.

    A NRRD must have `space directions` and an anatomical `space` (`left-posterior-superior`, but not `scanner-xyz`). A
    MetaImage must have one of the fields that give its direction matrix.
    """
    fields = _fields(path)
    if ending_of(path) in NRRD:
        return ANATOMICAL.fullmatch(fields.get("space", "")) is not None and "space directions" in fields
    return not {"transformmatrix", "rotation", "orientation"}.isdisjoint(fields)


def units_in_mm(path: str) -> np.ndarray:
    """Return the units of the three axes in mm `(3,)`, which ITK ignores.

    They are `DistanceUnits` in MetaImage and `space units` in NRRD, or `units` if there is no space.

    Raises:
        UserError: for an unknown unit.
    """
    fields = _fields(path)
    if ending_of(path) in METAIMAGE:
        names = [fields.get("distanceunits", "")] * int(fields.get("ndims", 3))
    elif "space units" in fields:
        names = _words(fields["space units"])
    else:
        spacings = fields.get("space directions") or fields.get("spacings", "")
        axes = zip(_words(fields.get("units", "")), _words(spacings), strict=False)
        names = [name for name, spacing in axes if spacing.lower() not in NO_DIRECTION]
    units = [re.sub("[µμ\udcb5]", "u", name.strip('"').strip()).lower() for name in (*names, "", "", "")][:3]
    for unit in units:
        if unit not in MILLIMETRES:
            raise UserError(f"{path} has lengths in {unit!r}, an unknown unit: correct its header, in mm for example.")
    return np.array([MILLIMETRES[unit] for unit in units])


def _words(value: str) -> list[str]:
    """Split the value of a NRRD field with an entry per axis: vectors, quoted texts or words."""
    return re.findall(r'\([^)]*\)|"[^"]*"|\S+', value)


def segments(path: str) -> dict[int, str]:
    """Return the names that 3D Slicer gives to the label values of a NRRD; empty for other files."""
    return of_nrrd(_fields(path)) if ending_of(path) in NRRD else {}


def data_files(path: str) -> list[str]:
    """Return the names of the files that contain the voxels of a header; empty if they follow the header itself.

    A NRRD or MetaImage header gives a name, a numbered series (`slice%03d.raw 1 40 1`), or `LIST` followed by a name
    per line. Names are relative to the header's folder, or absolute.

    Raises:
        UserError: for a file that does not exist, or a series without usable numbers; the message names the header.
    """
    names = _data_names(path)
    for name in names:
        if not Path(path).parent.joinpath(name).is_file():
            raise UserError(f"{path} names {name} as the file of its voxels, which does not exist: restore it.")
    return names


def _data_names(path: str) -> list[str]:
    fields, (_, listed) = _fields(path), _lines_and_list(path)
    value = _data_field(fields)
    kind, *words = value.split() or ["LOCAL"]
    if kind == "LIST":
        return listed
    if kind.upper() == "LOCAL" and not words:
        return []
    metaimage = ending_of(path) in METAIMAGE
    if "%" not in kind or not (metaimage or words):
        return [value]
    try:
        given = [int(word) for word in words]
        slices = int(fields["dimsize"].split()[-1]) if metaimage else None
        first = given[0] if given else 1
        last = given[1] if len(given) > 1 else first + (slices or 1) - 1
        step = given[2] if len(given) > 2 else 1
        return [kind % number for number in range(first, last + (1 if step > 0 else -1), step)][:slices]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} gives the files of its voxels as `{value}`, which is not a numbered series: name one file, or "
            "write LIST and one name per line."
        ) from error


def _data_field(fields: Mapping[str, str]) -> str:
    return next((fields[name] for name in ("data file", "datafile", "elementdatafile") if name in fields), "")


def _data_lines(path: str) -> list[str]:
    """Return the lines that name the voxel files of a header, with absolute paths and with a series as a list."""
    field = "ElementDataFile =" if ending_of(path) in METAIMAGE else "data file:"
    files = [str(Path(path).absolute().parent / name) for name in data_files(path)] or [str(Path(path).absolute())]
    kind, *words = _data_field(_fields(path)).split() or [""]
    if kind != "LIST" and len(files) == 1:
        return [f"{field} {files[0]}"]
    dimension = words if kind == "LIST" else words[3:]  # the number of axes in each file, which may be left out
    return [" ".join([field, "LIST", *dimension]), *files]


def with_list_axis(path: str) -> bytes | None:
    """Return a detached NRRD header that marks the only axis without a direction as `list`; `None` if not needed.

    ITK recognises a channel axis by its `kind`. Some programs omit it, and ITK then reads four spatial axes.
    """
    if ending_of(path) not in NRRD:
        return None
    fields, lines = _fields(path), _lines(path)
    axes = _words(fields.get("space directions") or fields.get("spacings", ""))
    kinds = fields.get("kinds", "").split() or ["domain"] * len(axes)
    without = [axis for axis, direction in enumerate(axes) if direction.lower() in NO_DIRECTION]
    if len(without) != 1 or len(kinds) != len(axes) or RANGE_KINDS.search(kinds[without[0]]):
        return None
    kinds = ["list" if axis == without[0] else "domain" for axis in range(len(axes))]
    header = [line for line in lines if not line.lower().startswith(("kinds:", "data file:", "datafile:"))]
    header.append(f"kinds: {' '.join(kinds)}")
    if not data_files(path):
        header.append(f"line skip: {len(lines) + 1}")
    header += _data_lines(path)
    return _text(header)


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _lines(path: str) -> list[str]:
    return _lines_and_list(path)[0]


def _lines_and_list(path: str) -> tuple[list[str], list[str]]:
    """Return the header's lines, and the names of files that follow the field `LIST`.

    A NRRD header ends at an empty line, a MetaImage header with `ElementDataFile`.
    """
    nrrd, lines = ending_of(path) in NRRD, []
    names: list[str] | None = None
    with open(path, "rb") as file:
        while (line := file.readline(LONGEST)) and file.tell() <= LONGEST:
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if nrrd and not text:
                break
            if names is not None:
                names += [text.strip()] if text.strip() else []
                continue
            lines.append(text)
            if DATA_FIELD.match(text):
                if re.split("[:=]", text)[1].split()[:1] == ["LIST"]:
                    names = []
                elif not nrrd:
                    break
    return lines, names or []


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
        affine = LPS_TO_RAS @ lps_affine(io)
        affine[:3] *= units_in_mm(path)[:, None]
        header = VolumeHeader(path, shape, channels, affine, stored_type(io).name, is_oriented(path), segments(path))

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
    data = data_files(path)
    repaired, ending = with_list_axis(path), ending_of(path)
    series = "%" in _data_field(_fields(path))  # ITK divides by zero if a series of MetaImage has no step
    if repaired is None and (ending in NRRD or (path.endswith(METAIMAGE) and not series)):
        yield path
        return
    with TemporaryDirectory() as folder:
        if repaired is None and not data:
            file = Path(folder, f"image{ending}")
            link_or_copy(Path(path).resolve(), file)
        else:
            file = Path(folder, "header.nhdr" if ending in NRRD else "header.mhd")
            file.write_bytes(repaired or _text([*_lines(path)[:-1], *_data_lines(path)]))
        yield str(file)
