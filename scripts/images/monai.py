# SPDX-License-Identifier: Apache-2.0
"""Load images for MONAI's transforms from files (`VolumeReader`) or from objects in memory (`loaded_volume`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from nibabel.spatialimages import SpatialImage

from scripts.errors import UserError
from scripts.images.header import LPS_TO_RAS, VolumeHeader, corner_distance
from scripts.images.read import read_volume

TOLERANCE_MM = 0.01
"""Maximum distance between the corners of two files that are channels of one image."""

LARGEST = float(np.finfo(np.float32).max)
"""Largest intensity; larger numbers become infinite in float32."""


ORIENTED = "oriented"
"""Key in an image's metadata that says whether the file states the directions of its axes."""


class VolumeReader(ImageReader):
    """Reads every format of docs/formats.md: files with one of `ENDINGS`, and folders of DICOM slices.

    `LoadImaged(keys, reader="scripts.images.monai.VolumeReader")` returns volumes `(X, Y, Z)`, or
    `(channels, X, Y, Z)` if there are several channels, in the axis order of the file and with its affine (voxel index
    to mm, RAS). As with MONAI's readers, `EnsureChannelFirstd` then converts all of them to `(channels, X, Y, Z)`. A
    list of files, each with one or several channels, is concatenated along the channels.

    Example:
        >>> from monai.transforms import LoadImage
        >>> image = LoadImage(reader=VolumeReader())("scan.nrrd")  # doctest: +SKIP
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return true always, so that an unreadable file raises an error and MONAI does not try other readers."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths unread. After an error in this method, `LoadImage` would try its other readers."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the files.

        Args:
            img: paths, as `read` returns them.

        Returns:
            Voxels `(X, Y, Z)` or `(channels, X, Y, Z)`, and the metadata that MONAI's transforms use: `affine`,
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
    """Return the metadata of a volume that MONAI's transforms use.

    Args:
        header: header of its first file.
        several: whether it has several channels, which then form its first axis.
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
    """Check that all voxels are finite, because normalisation turns the whole volume to NaN if one voxel is NaN.

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


def loaded_volume(image: Any, affine: Any = None) -> MetaTensor:
    """Convert an image to what MONAI's `LoadImage` with `VolumeReader` returns for a file, as float32.

    Args:
        image: a nibabel image `(X, Y, Z)` or `(X, Y, Z, channels)`, an ITK image, or an array or tensor `(X, Y, Z)` or
            `(channels, X, Y, Z)`.
        affine: affine of an array, `(4, 4)`, voxel index to mm (RAS); not needed for a `MetaTensor`.

    Raises:
        UserError: for another kind of object, an array without an affine, axes that do not form a volume, or values
            that are not finite.
    """
    name = type(image).__name__
    if isinstance(image, SpatialImage):
        voxels, affine = _channels_first(np.asanyarray(image.dataobj)), image.affine
    elif hasattr(image, "GetDirection") and type(image).__module__.startswith("itk"):
        voxels, affine = _of_itk(image)
    elif isinstance(image, np.ndarray | torch.Tensor):
        affine = getattr(image, "affine", None) if affine is None else affine
        voxels = np.asarray(torch.as_tensor(image).detach().cpu()) if isinstance(image, torch.Tensor) else image
    else:
        raise UserError(f"An image is a path, a nibabel image, an ITK image, or an array with affine, not a {name}.")
    if affine is None:
        raise UserError(f"The {name} has no affine: add affine=A, the matrix from voxel index to mm (RAS).")
    affine = np.asarray(affine, dtype=np.float32).astype(float)  # same rounding as for files
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise UserError(f"The affine of the {name} must be an invertible 4 x 4 matrix, got shape {affine.shape}.")
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or 0 in voxels.shape:
        raise UserError(f"The {name} must have the axes (X, Y, Z) or (channels, X, Y, Z), got shape {voxels.shape}.")
    x, y, z = voxels.shape[1:]
    header = VolumeHeader(f"The {name}", (x, y, z), len(voxels), affine, str(voxels.dtype), True)
    check_finite(header, voxels)
    array = (voxels if len(voxels) > 1 else voxels[0]).astype(np.float32)
    loaded: MetaTensor = MetaTensor.ensure_torch_and_prune_meta(array, meta_of(header, len(voxels) > 1))
    return loaded


def _channels_first(voxels: np.ndarray) -> np.ndarray:
    """Move the axes `(X, Y, Z, channels)` to `(channels, X, Y, Z)`."""
    return voxels if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)


def _of_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    import itk

    voxels = _channels_first(np.asarray(itk.array_from_image(image)))
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) @ np.diag(list(image.GetSpacing()))
    affine[:3, 3] = list(image.GetOrigin())
    # ITK's arrays have the last axis first.
    turned = voxels.T if voxels.ndim == 3 else voxels.transpose(0, 3, 2, 1)
    return np.ascontiguousarray(turned), LPS_TO_RAS @ affine
