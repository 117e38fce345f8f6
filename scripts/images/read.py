# SPDX-License-Identifier: Apache-2.0
"""Read headers and voxels of image files of every supported format.

NIfTI is read with nibabel, NRRD and MetaImage with ITK, and a folder of DICOM slices with ITK's GDCM. All return the
same affine, from voxel index to mm in RAS. docs/formats.md describes how unusual files are handled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.errors import UserError
from scripts.images import dicom, nifti
from scripts.images import itk as itk_format
from scripts.images.dicom_slices import drawn_structures, split_series
from scripts.images.header import (
    ENDINGS,
    METAIMAGE,
    MGH,
    NIFTI,
    NRRD,
    PAIR,
    ReadVoxels,
    VolumeHeader,
    ending_of,
    pair_of,
)


@dataclass(frozen=True)
class Volume:
    """A file with its header parsed; the voxels are read on request.

    Attributes:
        header: header of the file.
        read: function that reads the voxels. Unlike `voxels`, it raises the errors of the library.
    """

    header: VolumeHeader
    read: ReadVoxels

    def voxels(self) -> np.ndarray:
        """Read the scaled voxels `(channels, X, Y, Z)`, in the order of the header's axes and the file's type.

        Raises:
            UserError: if the file cannot be read; the message names it.
        """
        with _naming_the_file(self.header.path):
            return self.read()


def exists(path: str | Path) -> bool:
    """Whether a file or folder exists; for `FOLDER#SERIES_UID`, whether the folder does."""
    return Path(split_series(path)[0]).exists()


def parts_of(path: str | Path) -> list[str]:
    """Return the names of the files that an image file needs besides itself.

    These are the voxel files that a header names, or the other half of a pair and SPM's `.mat` file.

    Returns:
        Paths relative to the folder of `path`, or absolute, as a header gives them.

    Raises:
        UserError: if a file that the header names does not exist.
    """
    ending = ending_of(path)
    if ending in PAIR:
        return [file.name for file in pair_of(path).values() if file != Path(path)]
    return itk_format.data_files(str(path)) if ending in (*NRRD, *METAIMAGE) else []


def open_volume(path: str | Path) -> Volume:
    """Parse the header of a volume.

    Args:
        path: a file with one of `ENDINGS`, a folder of DICOM slices, or, if it contains several series,
            `FOLDER#SERIES_UID`.

    Raises:
        UserError: if the file cannot be read as a volume; the message names it.
    """
    path = str(path)
    if not exists(path):
        raise UserError(f"{path} does not exist: correct the path.")
    with _naming_the_file(path):
        if Path(split_series(path)[0]).is_dir():
            header, voxels = dicom.open_volume(path)
        elif ending_of(path) in (*NIFTI, *PAIR, *MGH):
            header, voxels = nifti.open_volume(path)
        elif ending_of(path) is not None:
            header, voxels = itk_format.open_volume(path)
        elif drawn := drawn_structures(Path(path)):
            raise UserError(f"{path} is {drawn}, which is not read: convert it to a NIfTI or NRRD label file.")
        else:
            raise UserError(
                f"{path} has no known image format: give a file ending in {', '.join(ENDINGS)}, or a folder of DICOM "
                "slices."
            )
    if not np.isfinite(header.affine).all() or abs(np.linalg.det(header.affine)) < 1e-12:
        raise UserError(f"{path} has no valid voxel size: correct its orientation matrix or voxel spacing.")
    if 0 in header.shape:
        raise UserError(f"{path} is empty (shape {header.size}): remove it from the dataset.")
    # NIfTI stores the affine in 32 bits, so the affines of all formats are rounded to 32 bits. Otherwise, resampling
    # could give different sizes for the same volume in two formats.
    return Volume(replace(header, affine=header.affine.astype(np.float32).astype(float)), voxels)


def read_header(path: str | Path) -> VolumeHeader:
    """Return the header of a volume; see `open_volume`."""
    return open_volume(path).header


def read_volume(path: str | Path) -> tuple[VolumeHeader, np.ndarray]:
    """Return header and voxels of a volume; see `open_volume` and `Volume.voxels`."""
    volume = open_volume(path)
    return volume.header, volume.voxels()


@contextmanager
def _naming_the_file(path: str) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: change its permissions.") from error
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as an image ({_reason(error)}): it may be incomplete or damaged; replace it."
        ) from error


def _reason(error: Exception) -> str:
    """Return the most informative line of a library's message, without source lines and memory addresses."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = re.compile(r"\S+\.[ch]xx:\d+:$|Reason: |- |$")  # ITK's "Reason" describes the last failed system call
    telling = [line for line in lines if not noise.match(line)] or [type(error).__name__]
    told = re.sub(r"^ITK ERROR: (\w+\(0x\w+\): )?", "", telling[-1])
    return re.sub(r"( of|:)? (['\"])\S*[/\\](image|header)\.\S+\2", "", told).rstrip(". ")  # name of a temporary link
