# SPDX-License-Identifier: Apache-2.0
"""Read NIfTI, Analyze and MGH with nibabel, which accepts any affine (ITK does not accept affines with shear)."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from scripts.errors import UserError
from scripts.files import link_or_copy
from scripts.images.header import (
    LPS_TO_RAS,
    MGH,
    NIFTI,
    PAIR,
    ReadVoxels,
    VolumeHeader,
    ending_of,
    pair_of,
    shape_and_channels,
)
from scripts.images.label_names import of_nifti

# nibabel logs a repaired voxel size without the name of the file. Sizes that matter are checked when a file is opened.
logging.getLogger("nibabel.global").setLevel(logging.ERROR)

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""Factors from other units of length in a header to mm; nibabel does not convert them."""


@contextmanager
def _named_by_content(path: str) -> Iterator[str]:
    """Yield the path, or a temporary link whose ending says whether the file is compressed, as nibabel needs it.

    Some programs write uncompressed files with the ending `.nii.gz`; the first two bytes show whether a file is
    compressed. nibabel also needs the endings of a pair in the same case.
    """
    ending = ending_of(path)
    if ending is None:
        yield path
        return
    if ending in PAIR:
        with _pair_in_lower_case(path) as file:
            yield file
        return
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    right = NIFTI[not packed] if ending in NIFTI else MGH[not packed]
    if path.endswith(right):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, f"image{right}")
        link_or_copy(Path(path).resolve(), link)
        yield str(link)


@contextmanager
def _pair_in_lower_case(path: str) -> Iterator[str]:
    files = pair_of(path)
    if all(file.suffix == ending for ending, file in files.items()):
        yield path
        return
    with TemporaryDirectory() as folder:
        for ending, file in files.items():
            link_or_copy(file.resolve(), Path(folder, f"image{ending}"))
        yield str(Path(folder, f"image{PAIR[0]}"))


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Read the header; return it with a function that reads the voxels, scaled by `scl_slope` and `scl_inter`.

    Raises:
        UserError: for colours, complex numbers, or axes that do not form a volume.
    """
    with _named_by_content(path) as file:
        image = nibabel.load(file)
    stored, kind = image.get_data_dtype(), type(image)
    if stored.fields is not None or stored.kind == "c":
        content = "complex numbers" if stored.kind == "c" else "colours (RGB)"
        raise UserError(f"{path} contains {content}: convert it to one number per voxel, or to one channel for each.")
    shape, channels = shape_and_channels(path, image.shape)
    oriented = _is_oriented(path, image.header)
    affine = _stored_affine(image) if oriented else _affine_without_orientation(image)
    if hasattr(image.header, "get_xyzt_units"):
        affine[:3] *= MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)

    def voxels() -> np.ndarray:
        with _named_by_content(path) as file:
            compressed = file.endswith((".gz", ".mgz"))
            array = _read_to_the_end(file, kind) if compressed else np.asanyarray(nibabel.load(file).dataobj)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch does not support big-endian numbers
        return np.moveaxis(array.reshape(*shape, channels), -1, 0)

    dtype = stored.newbyteorder("=").name
    header = VolumeHeader(
        path, shape, channels, affine, dtype, oriented, of_nifti(image.header), time_axis=_has_time_axis(image)
    )
    return header, voxels


def _has_time_axis(image: Any) -> bool:
    """Whether the fourth axis has a unit of time; some programs write one for channels too."""
    units = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else ""
    return len(image.shape) > 3 and image.shape[3] > 1 and units in ("sec", "msec", "usec")


def _is_oriented(path: str, header: Any) -> bool:
    """Whether a header states the directions of the axes; for Analyze, whether SPM wrote a `.mat` file for it."""
    if isinstance(header, nibabel.MGHImage.header_class):
        return bool(header["goodRASFlag"] > 0)
    if "sform_code" not in header:
        return ".mat" in pair_of(path)
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


GRID_FIELDS = (
    "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def header_with_grid_of(path: str) -> nibabel.Nifti1Header | None:
    """Make a new header with sform, qform, voxel size and unit of length of a file.

    Returns:
        The header; `None` for a 2D image with an orientation, because its matrices do not describe a volume, and for
        Analyze, which has no such fields.
    """
    with _named_by_content(path) as file:
        image = nibabel.load(file)
    given = image.header
    if "sform_code" not in given:
        return None
    if len(image.shape) < 3 and (given["sform_code"] > 0 or given["qform_code"] > 0):
        return None
    header = nibabel.Nifti1Header()
    for field in GRID_FIELDS:
        header[field] = given[field]
    header["pixdim"][:4] = given["pixdim"][:4]
    header["pixdim"][1:4][header["pixdim"][1:4] == 0] = 1  # a 2D image may have no third voxel size
    header.set_xyzt_units(given.get_xyzt_units()[0])
    return header


def _read_to_the_end(file: str, kind: type[nibabel.Nifti1Image]) -> np.ndarray:
    """Read a compressed file up to its checksum, because some damaged data can be decompressed without an error."""
    try:
        with gzip.open(file) as stream:
            array = np.asanyarray(kind.from_stream(stream).dataobj)
            while stream.read(1 << 20):
                pass
    except gzip.BadGzipFile as error:
        raise ValueError("its content does not match its checksum") from error
    return array


def _stored_affine(image: nibabel.Nifti1Image) -> np.ndarray:
    affine = np.array(image.affine, dtype=float)
    if len(image.shape) < 3 and not affine[:3, 2].any():
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])  # a 2D image has no third axis: use the normal
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1.0
    return affine


def _affine_without_orientation(image: nibabel.Nifti1Image) -> np.ndarray:
    """Assume axes L, P, S from the origin, as ITK does; nibabel would assume L, A, S about the centre."""
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()[:3]]
    return LPS_TO_RAS @ np.diag([*zooms, *[1.0] * (4 - len(zooms))])
