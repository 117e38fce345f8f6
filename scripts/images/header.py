# SPDX-License-Identifier: Apache-2.0
"""Headers of volumes, sizes that are computed from them, and the endings of image files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np

from scripts.errors import UserError

NIFTI = (".nii.gz", ".nii")
PAIR = (".img", ".hdr")
"""NIfTI or Analyze in two files with the same name; the .img file represents the image."""
MGH = (".mgz", ".mgh")
SLICER = (".seg.nrrd", ".seg.nhdr")
"""3D Slicer saves a segmentation as NAME.seg.nrrd."""
NRRD = (*SLICER, ".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
ENDINGS = (*NIFTI, *PAIR, *MGH, *NRRD, *METAIMAGE)
"""Endings of image files, in lower case. A DICOM series is a folder and has none."""


NNUNET_CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's notation for channels: `case_0000`, `case_0001`."""


def ending_of(path: str | Path) -> str | None:
    """Return the ending of an image file in lower case (`.nii.gz`), or `None` for any other file."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def case_name(path: str | Path) -> str:
    """Return the file name without its image ending (`la_000` for `a.b/la_000.nii.gz`), or a folder's whole name."""
    return Path(path).name[: -len(ending_of(path) or "") or None]


def pair_of(path: str | Path) -> dict[str, Path]:
    """Map `.img`, `.hdr` and `.mat` (from SPM, optional) to the existing files of a pair, in whatever case they are.

    Args:
        path: one of the two files.
    """
    path = Path(path)
    own = path.suffix
    files = {own.lower(): path}
    for ending in ({PAIR[0]: PAIR[1], PAIR[1]: PAIR[0]}[own.lower()], ".mat"):
        same_case = "".join(new.upper() if old.isupper() else new for new, old in zip(ending, own, strict=True))
        others = [path.with_suffix(other) for other in (same_case, ending, ending.upper(), ending.title())]
        if found := [other for other in others if other.exists()]:
            files[ending] = found[0]
    return files


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

ReadVoxels = Callable[[], np.ndarray]
"""Function that reads the voxels `(channels, X, Y, Z)` of a file whose header was read."""


@dataclass(frozen=True)
class VolumeHeader:
    """Description of a volume from the header of its file.

    Attributes:
        path: the file, or the folder of a DICOM series.
        shape: number of voxels along the three axes.
        channels: number of channels in the file.
        affine: `(4, 4)`, voxel index to mm (RAS).
        dtype: NumPy name of the stored type.
        oriented: whether the file states the directions of its axes; if not, they are assumed to be L, P, S, as in
            DICOM and ITK.
        segments: names that the file gives to its label values (3D Slicer, TotalSegmentator); empty for other files.
        time_axis: whether the header declares the axis of the channels to be time (NIfTI).
    """

    path: str
    shape: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    dtype: str
    oriented: bool
    segments: Mapping[int, str] = field(default_factory=dict)
    time_axis: bool = False

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the three axes in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def axcodes(self) -> str:
        """Directions of the axes, e.g. `RAS`."""
        return "".join(nibabel.aff2axcodes(self.affine))

    @property
    def corners(self) -> np.ndarray:
        """Centres of the eight corner voxels, `(8, 3)`, in mm (RAS)."""
        index = np.stack(np.meshgrid(*([0, side - 1] for side in self.shape), indexing="ij"), axis=-1).reshape(8, 3)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def size(self) -> str:
        """Number of voxels along the three axes for messages, e.g. `9 x 7 x 5`."""
        return " x ".join(map(str, self.shape))

    def in_ras(self) -> VolumeHeader:
        """Return the header of the volume after reorientation to RAS, as in training."""
        return self._turned(nibabel.io_orientation(self.affine))

    def in_axes_of(self, other: VolumeHeader) -> VolumeHeader:
        """Return the header of the volume with the order and directions of another volume's axes."""
        return self._turned(axes_onto(self.affine, other.affine))

    def _turned(self, orientation: np.ndarray) -> VolumeHeader:
        x, y, z = (self.shape[axis] for axis in np.argsort(orientation[:, 0]))
        affine = self.affine @ nibabel.orientations.inv_ornt_aff(orientation, self.shape)
        return replace(self, shape=(x, y, z), affine=affine)


def axes_onto(affine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Match each axis of a volume with the nearest axis of another volume.

    The result is reliable even if both volumes are rotated by 45 degrees to the body and differ by rounding; a
    comparison via RAS would not be.

    Args:
        affine: affine of the volume, `(4, 4)`.
        other: affine of the other volume, `(4, 4)`.

    Returns:
        nibabel's orientation `(3, 2)`: for each axis, the matching axis of the other volume, and 1 or -1 for its
        direction.
    """
    return np.asarray(nibabel.io_orientation(np.linalg.inv(other) @ affine))


def corner_distance(one: VolumeHeader, other: VolumeHeader) -> float:
    """Return the largest distance in mm between corresponding corners of two volumes of the same shape."""
    return float(np.linalg.norm(one.corners - other.corners, axis=1).max())


def shape_and_channels(path: str, axes: Sequence[int], components: int = 1) -> tuple[tuple[int, int, int], int]:
    """Return the spatial shape and the number of channels of a file.

    Two axes make a volume of one slice. Axes of length 1 after the third are dropped.

    Args:
        path: path of the file, for the error message.
        axes: lengths of the file's axes, the spatial ones first.
        components: values per voxel, for formats that store this number separately from the axes.

    Raises:
        UserError: for fewer than two axes, or more than one channel axis.
    """
    channels = [n for n in (components, *axes[3:]) if n > 1]
    if len(axes) < 2 or len(channels) > 1:
        per_voxel = f" with {components} values per voxel" if components > 1 else ""
        raise UserError(
            f"{path} has {len(axes)} axes of {' x '.join(map(str, axes))}{per_voxel}: only three spatial axes and "
            "one channel axis are supported, so split the file."
        )
    x, y, z = (*axes, 1)[:3]
    return (int(x), int(y), int(z)), int(channels[0]) if channels else 1


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the shape of a volume after resampling by MONAI's `Spacingd`, which keeps the outermost voxel centres.

    Args:
        shape: number of voxels along the axes R, A, S.
        spacing: current spacing in mm.
        target: new spacing in mm.
    """
    return tuple(round((n - 1) * s / t + 1) for n, s, t in zip(shape, spacing, target, strict=True))
