# SPDX-License-Identifier: Apache-2.0
"""The reader and the writer that MONAI's `LoadImaged` and `SaveImaged` take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.errors import UserError
from scripts.images.header import corner_distance
from scripts.images.read import VolumeHeader, read_volume

TOLERANCE_MM = 0.01
"""How far the corners of two files may lie apart that are channels of one image."""

LARGEST = float(np.finfo(np.float32).max)
"""Beyond it a number is infinite to the network."""


class VolumeReader(ImageReader):
    """Reads `.nii.gz`, `.nii`, `.nrrd`, `.nhdr`, `.mha`, `.mhd` and folders of DICOM slices (`scripts.images.read`).

    `LoadImaged(keys, reader="scripts.images.monai.VolumeReader")` gives volumes `(X, Y, Z)`, or
    `(channels, X, Y, Z)` where there are several channels, with the affine of the file's own axes (voxel index to mm,
    RAS); as with MONAI's readers, `EnsureChannelFirstd` then makes all of them `(channels, X, Y, Z)`. A list of files,
    of one or several channels each, is put together along the channels.

    Example:
        >>> from monai.transforms import LoadImage
        >>> image = LoadImage(reader=VolumeReader())("scan.nrrd")  # doctest: +SKIP
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Always true: a file that cannot be read is refused by name instead of being tried with other readers."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths: `LoadImage` takes an error here for "not my format" and goes on with its other readers."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the files.

        Args:
            img: paths, as `read` returns them.

        Returns:
            Voxels `(X, Y, Z)` or `(channels, X, Y, Z)`, and the meta data that MONAI's transforms use: `affine`,
            `original_affine`, `space`, `spatial_shape`, `original_channel_dim`.

        Raises:
            UserError: naming the file that cannot be read, whose grid is not that of the first, or that holds NaN or
                infinity.
        """
        volumes = [read_volume(path) for path in img]
        for header, voxels in volumes:
            check_finite(header, voxels)
        first = volumes[0][0]
        for header, _ in volumes[1:]:
            check_same_grid(first, header)
        array = np.concatenate([voxels for _, voxels in volumes]) if len(volumes) > 1 else volumes[0][1]
        several = len(array) > 1
        return array if several else array[0], {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(first.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if several else float("nan"),  # NaN is MONAI's "no channel"
        }


def check_finite(header: VolumeHeader, voxels: np.ndarray) -> None:
    """One voxel that is no number makes a whole normalised volume NaN, which then looks like background.

    Raises:
        UserError: for NaN, infinity, or a number that float32 does not hold.
    """
    if voxels.dtype.kind == "f" and not (voxels.min() >= -LARGEST and voxels.max() <= LARGEST):  # NaN is in no order
        raise UserError(
            f"{header.path} holds NaN, infinity or numbers beyond 32 bits, which turn every normalised voxel into NaN: "
            "write a number there, or leave the case out."
        )


def check_same_grid(first: VolumeHeader, other: VolumeHeader) -> None:
    """Two files that are channels of one image must have their voxels at the same places.

    Raises:
        UserError: for different numbers of voxels, or corners that lie more than `TOLERANCE_MM` apart.
    """
    if first.shape != other.shape:
        raise UserError(
            f"{other.path} has {other.size} voxels, but {first.path}, a channel of the same image, has {first.size}: "
            "resample one to the grid of the other."
        )
    apart = corner_distance(first, other)
    if apart > TOLERANCE_MM:
        raise UserError(
            f"{other.path} lies {apart:.4g} mm away from {first.path}, a channel of the same image: resample one to "
            "the grid of the other."
        )


def label_dtype(values: Sequence[int]) -> np.dtype:
    """The smallest type of a NIfTI file that holds these label values: uint8 for 0 to 255, else int16 or int32."""
    kinds = (np.uint8, np.int16, np.int32)
    limits = [(np.iinfo(kind).min, np.iinfo(kind).max) for kind in kinds]
    fitting = [k for k, (low, high) in zip(kinds, limits, strict=True) if low <= min(values) and max(values) <= high]
    return np.dtype(fitting[0])
