# SPDX-License-Identifier: Apache-2.0
"""What is known of a volume before its voxels are read, and which file names are images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np

from scripts.errors import UserError

NIFTI = (".nii.gz", ".nii")
NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
ENDINGS = (*NIFTI, *NRRD, *METAIMAGE)
"""Of image files, in lower case; a DICOM series is a folder."""


def ending_of(path: str | Path) -> str | None:
    """The ending that makes a file an image (`.nii.gz`, lower case), `None` for another file."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def case_name(path: str | Path) -> str:
    """File name without an image's ending: `a.b/la_000.nii.gz` to `la_000`; the name of a DICOM folder as it is."""
    return Path(path).name[: -len(ending_of(path) or "") or None]


@contextmanager
def in_lower_case(path: str, beside: Sequence[str] = ()) -> Iterator[str]:
    """The path, or, where its ending is not in lower case, that of a link which is, for as long as the context.

    nibabel does not know `.Nii`, ITK neither `.MHA` nor `.MHD`; a NRRD it knows by its first bytes.

    Args:
        path: an image file.
        beside: names of the files in its folder that it refers to.
    """
    ending = ending_of(path)
    if ending is None or ending in NRRD or path.endswith(ending):
        yield path
        return
    with TemporaryDirectory() as folder:
        file = Path(path).resolve()
        link = Path(folder, f"image{ending}")
        link.symlink_to(file)
        for name in beside:
            Path(folder, name).symlink_to(file.parent / name)
        yield str(link)


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

ReadVoxels = Callable[[], np.ndarray]
"""Reads the voxels `(channels, X, Y, Z)` of a file whose header is known."""


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
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def axcodes(self) -> str:
        """Where the axes point, e.g. `RAS`."""
        return "".join(nibabel.aff2axcodes(self.affine))

    @property
    def corners(self) -> np.ndarray:
        """Centres of the eight corner voxels, `(8, 3)`, mm, RAS."""
        index = np.stack(np.meshgrid(*([0, side - 1] for side in self.shape), indexing="ij"), axis=-1).reshape(8, 3)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def size(self) -> str:
        """Voxels along the three axes, to print: `9 x 7 x 5`."""
        return " x ".join(map(str, self.shape))

    def in_ras(self) -> VolumeHeader:
        """The header of the same volume with its axes in the order and direction of RAS, as training turns them."""
        orientation = nibabel.io_orientation(self.affine)
        x, y, z = (self.shape[axis] for axis in np.argsort(orientation[:, 0]))
        affine = self.affine @ nibabel.orientations.inv_ornt_aff(orientation, self.shape)
        return replace(self, shape=(x, y, z), affine=affine)


def corner_distance(one: VolumeHeader, other: VolumeHeader) -> float:
    """Largest distance between the same corner of two volumes of the same shape, mm."""
    return float(np.linalg.norm(one.corners - other.corners, axis=1).max())


def shape_and_channels(path: str, axes: Sequence[int], components: int = 1) -> tuple[tuple[int, int, int], int]:
    """Three axes of voxels, and one number of channels, of the axes that a file has.

    Fewer than three axes make a volume of one slice; axes of one voxel behind the third are dropped.

    Args:
        path: for the message.
        axes: sizes of the file's axes, the spatial ones first.
        components: values a voxel, where the format has them beside its axes.

    Raises:
        UserError: for fewer than two axes, or more than one axis of channels.
    """
    channels = [n for n in (components, *axes[3:]) if n > 1]
    if len(axes) < 2 or len(channels) > 1:
        per_voxel = f" with {components} values a voxel" if components > 1 else ""
        raise UserError(
            f"{path} has {len(axes)} axes of {' x '.join(map(str, axes))}{per_voxel}: it must have three of space "
            "and at most one of channels, so split it."
        )
    x, y, z = (*axes, 1)[:3]
    return (int(x), int(y), int(z)), int(channels[0]) if channels else 1
