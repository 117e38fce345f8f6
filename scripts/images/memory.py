# SPDX-License-Identifier: Apache-2.0
"""Images in memory: nibabel images, ITK images, and arrays with an affine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from scripts.errors import UserError
from scripts.images.header import LPS_TO_RAS, VolumeHeader
from scripts.images.monai import check_finite, meta_of


def loaded_volume(image: Any, affine: Any = None) -> MetaTensor:
    """The image as MONAI's `LoadImage` with `VolumeReader` returns it for a file, float32.

    Args:
        image: a nibabel image `(X, Y, Z)` or `(X, Y, Z, channels)`, an ITK image, or an array or tensor `(X, Y, Z)` or
            `(channels, X, Y, Z)`.
        affine: of an array, `(4, 4)`, voxel index to mm, RAS; a `MetaTensor` has its own.

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
    affine = np.asarray(affine, dtype=np.float32).astype(float)  # as those of files
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
    """`(X, Y, Z, channels)` to `(channels, X, Y, Z)`."""
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
