# SPDX-License-Identifier: Apache-2.0
"""Image files of every format as one thing: what a header says, and the voxels on axes from left to right.

NIfTI goes through nibabel, which takes any affine; everything else (NRRD, MHA, MHD, DICOM series) through ITK. Both
give the same affine: voxel index to millimetres, RAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import itk
import nibabel
import numpy as np

from scripts.errors import BundleError

NIFTI = (".nii.gz", ".nii")
ENDINGS = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
"""Of image files, in lower case; a DICOM series is a folder."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class VolumeHeader:
    """What a file says about its volume before a voxel is read.

    Attributes:
        path: the file, or the folder of a DICOM series.
        shape: voxels along the three axes.
        channels: 1, or the number of channels that the file itself holds.
        affine: `(4, 4)`, voxel index to mm, RAS.
        dtype: NumPy name of the stored type.
        oriented: whether the file says where its axes point; else they are taken to be L, P, S as DICOM and ITK do.
    """

    path: str
    shape: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    dtype: str
    oriented: bool

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel along the three axes, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def axcodes(self) -> str:
        """Where the axes point, e.g. `RAS`."""
        return "".join(nibabel.aff2axcodes(self.affine))


def ending_of(path: str | Path) -> str | None:
    """The ending that makes a file an image (`.nii.gz`, lower case), `None` for another file."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def read_header(path: str | Path) -> VolumeHeader:
    """Read what stands in front of the voxels.

    Raises:
        BundleError: naming the file, if it cannot be read as a volume.
    """
    path = str(path)
    try:
        return _nifti_header(path) if ending_of(path) in NIFTI else _itk_header(path)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path} cannot be read as an image: {_reason(error)}") from error


def read_voxels(path: str | Path) -> np.ndarray:
    """The voxels `(channels, X, Y, Z)` in the order of the header's axes, in the file's type with its scaling applied.

    Raises:
        BundleError: naming the file, if it cannot be read.
    """
    header = read_header(path)
    try:
        if ending_of(path) in NIFTI:
            array = np.asanyarray(nibabel.load(path).dataobj)
            array = array.reshape(*header.shape, header.channels)
            return np.moveaxis(array, -1, 0)
        array = itk.array_from_image(itk.imread(path))
        array = array[..., None] if array.ndim == 3 else array
        return array.transpose(3, 2, 1, 0)
    except Exception as error:
        raise BundleError(f"{path} cannot be read: {_reason(error)}") from error


def _nifti_header(path: str) -> VolumeHeader:
    image = nibabel.load(path)
    shape = (*image.shape, 1, 1, 1)
    rest = [n for n in image.shape[3:] if n > 1]
    if len(rest) > 1:
        raise BundleError(f"{path} has axes of {image.shape} voxels: three, and one of channels, can be used.")
    oriented = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    affine = image.affine
    if not oriented:
        affine = LPS_TO_RAS @ np.diag([*(float(z) for z in image.header.get_zooms()[:3]), 1.0])
    return VolumeHeader(
        path, shape[:3], rest[0] if rest else 1, np.asarray(affine, float), str(image.get_data_dtype()), oriented
    )


def _itk_header(path: str) -> VolumeHeader:
    io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise BundleError(f"{path} is no image file that can be read: {', '.join(ENDINGS)} can.")
    io.SetFileName(path)
    io.ReadImageInformation()
    axes = range(3)
    affine = np.eye(4)
    for axis in axes:
        affine[:3, axis] = np.asarray(io.GetDirection(axis))[:3] * io.GetSpacing(axis)
    affine[:3, 3] = [io.GetOrigin(axis) for axis in axes]
    return VolumeHeader(
        path,
        tuple(io.GetDimensions(axis) for axis in axes),
        io.GetNumberOfComponents(),
        LPS_TO_RAS @ affine,
        io.GetComponentTypeAsString(io.GetComponentType()),
        True,
    )


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
