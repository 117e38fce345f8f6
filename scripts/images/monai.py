# SPDX-License-Identifier: Apache-2.0
"""The image reader for MONAI's `LoadImaged`, and the checks that it makes."""

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
"""Largest distance between the corners of two files that are channels of one image."""

LARGEST = float(np.finfo(np.float32).max)
"""Largest intensity: beyond it a number becomes infinite in float32."""


ORIENTED = "oriented"
"""Key of an image's meta data: whether its file states the directions of its axes."""


class VolumeReader(ImageReader):
    """Reads every format of docs/formats.md: files with one of `ENDINGS`, and folders of DICOM slices.

    `LoadImaged(keys, reader="scripts.images.monai.VolumeReader")` gives volumes `(X, Y, Z)`, or
    `(channels, X, Y, Z)` where there are several channels, with the affine of the file's own axes (voxel index to mm,
    RAS); as with MONAI's readers, `EnsureChannelFirstd` then makes all of them `(channels, X, Y, Z)`. A list of files,
    of one or several channels each, is concatenated along the channels.

    Example:
        >>> from monai.transforms import LoadImage
        >>> image = LoadImage(reader=VolumeReader())("scan.nrrd")  # doctest: +SKIP
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Always true: an unreadable file must raise an error instead of being tried with MONAI's other readers."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths. `LoadImage` would answer an error here by trying its other readers."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the files.

        Args:
            img: paths, as `read` returns them.

        Returns:
            Voxels `(X, Y, Z)` or `(channels, X, Y, Z)`, and the meta data that MONAI's transforms use: `affine`,
            `original_affine`, `space`, `spatial_shape`, `original_channel_dim`; and `ORIENTED`.

        Raises:
            UserError: if a file cannot be read, is on another grid than the first, or contains NaN or infinity. The
                message names the file.
        """
        volumes = [read_volume(path) for path in img]
        for header, voxels in volumes:
            check_finite(header, voxels)
        first = volumes[0][0]
        for header, _ in volumes[1:]:
            check_same_grid(first, header)
        array = np.concatenate([voxels for _, voxels in volumes]) if len(volumes) > 1 else volumes[0][1]
        several = len(array) > 1
        return array if several else array[0], meta_of(first, several)


def meta_of(header: VolumeHeader, several: bool) -> dict[str, Any]:
    """The meta data of a volume that MONAI's transforms use.

    Args:
        header: of its first file.
        several: whether it has several channels, which are then its first axis.
    """
    return {
        MetaKeys.AFFINE: header.affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
        ORIENTED: header.oriented,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if several else float("nan"),  # NaN is MONAI's "no channel"
    }


def check_finite(header: VolumeHeader, voxels: np.ndarray) -> None:
    """Check that all voxels are finite: after normalisation, a single NaN makes the whole volume NaN.

    Raises:
        UserError: for NaN, infinity, or a number beyond the range of float32.
    """
    if voxels.dtype.kind == "f" and not (
        voxels.min() >= -LARGEST and voxels.max() <= LARGEST
    ):  # comparisons with NaN are false
        raise UserError(
            f"{header.path} contains NaN, infinity or numbers beyond float32, which turn every normalised voxel into "
            "NaN: replace these values, or remove the case."
        )


def check_same_grid(first: VolumeHeader, other: VolumeHeader) -> None:
    """Check that two files, channels of one image, have the same grid.

    Raises:
        UserError: if their shapes differ, or their corners are more than `TOLERANCE_MM` apart.
    """
    if first.shape != other.shape:
        raise UserError(
            f"{other.path} has {other.size} voxels, but {first.path}, a channel of the same image, has {first.size}: "
            "resample one to the grid of the other."
        )
    apart = corner_distance(first, other)
    if apart > TOLERANCE_MM:
        raise UserError(
            f"{other.path} is up to {apart:.4g} mm away from {first.path}, a channel of the same image: resample one "
            "to the grid of the other."
        )


def label_dtype(values: Sequence[int]) -> np.dtype:
    """Return the smallest type that holds these label values: uint8 for 0 to 255, else int16, int32, uint32, int64."""
    kinds = (np.uint8, np.int16, np.int32, np.uint32, np.int64)
    limits = [(np.iinfo(kind).min, np.iinfo(kind).max) for kind in kinds]
    fitting = [k for k, (low, high) in zip(kinds, limits, strict=True) if low <= min(values) and max(values) <= high]
    return np.dtype(fitting[0])
