# SPDX-License-Identifier: Apache-2.0
"""MONAI's `Spacingd` with memory for its input and its output, and not for the coordinates of every voxel besides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd, SpatialResample
from monai.utils import GridSampleMode

from scripts.data.block_resampling import BLOCK_VOXELS, BlockResampler


class BlockSpatialResample(SpatialResample):
    """`SpatialResample` in blocks, for linear interpolation; other modes go to MONAI's as they are.

    MONAI holds three coordinates of 64 bits for each voxel of the result, and copies of 64 bits of both volumes. The
    result is the same but for the last bits; it cannot be inverted by `Invertd`.
    """

    def __call__(
        self,
        img: torch.Tensor,
        dst_affine: torch.Tensor | None = None,
        spatial_size: Sequence[int] | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """See MONAI."""
        linear = (
            str(mode or self.mode) == GridSampleMode.BILINEAR and str(padding_mode or self.padding_mode) == "border"
        )
        moved = dst_affine is not None and not np.allclose(np.asarray(img.affine), np.asarray(dst_affine), atol=1e-4)
        if not linear or not moved or align_corners or spatial_size is None or img.ndim != 4:
            return super().__call__(img, dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        plain, size = img.as_subclass(torch.Tensor), [int(side) for side in spatial_size]
        affine = np.asarray(dst_affine, float)
        axis = int(np.argmax(plain.shape[1:]))
        resampler = BlockResampler(np.asarray(img.affine), plain.shape[1:], axis, affine, size, torch.float64)
        step = max(2, BLOCK_VOXELS * plain.shape[axis + 1] // plain[0].numel())
        result = torch.empty(len(plain), *size)
        for start in range(0, plain.shape[axis + 1], step):
            block = plain.narrow(axis + 1, start, min(step, plain.shape[axis + 1] - start))
            for place, values in resampler.take(start, block):
                result[(slice(None), *place)] = values
        return MetaTensor(result, meta={**img.meta, "affine": torch.as_tensor(affine)})


def with_block_spacing(preprocessing: Callable) -> Callable:
    """A copy of a chain of transforms whose `Spacingd` work in blocks; anything else comes back as it is."""
    if not isinstance(preprocessing, Compose):
        return preprocessing
    preprocessing = copy.deepcopy(preprocessing)
    for transform in preprocessing.flatten().transforms:
        if isinstance(transform, Spacingd):
            whole = transform.spacing_transform.sp_resample
            transform.spacing_transform.sp_resample = BlockSpatialResample(
                whole.mode, whole.padding_mode, whole.align_corners, whole.dtype
            )
    return preprocessing
