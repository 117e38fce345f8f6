# SPDX-License-Identifier: Apache-2.0
"""A volume that arrives in blocks comes out as if it had been resampled at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from scripts.inference import streaming as block_resampling
from scripts.inference.streaming import BlockResampler
from tests.volume_files import affine, oblique, stored_as

SHAPE = (14, 11, 9)


def sheared() -> np.ndarray:
    result = affine((1.0, 1.5, 2.0))
    result[0, 2] = 0.9
    return result


def target_of(kind: str) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Source affine, target affine, target shape: a finer or coarser grid over the same body."""
    source = oblique((1.5, 2.0, 2.5))
    if kind == "sheared":
        return affine((1.5, 2.0, 2.5)), sheared(), (18, 12, 10)
    spacing, shape = {"finer": ((0.7, 0.9, 1.1), (30, 24, 20)), "coarser": ((3.1, 4.2, 5.3), (6, 5, 4))}[kind[:-4]]
    array, matrix = stored_as(np.zeros(shape), oblique(spacing), kind[-3:])
    return source, matrix, array.shape


@pytest.mark.parametrize("kind", ["finer RAS", "finer PIR", "finer LPS", "coarser ASL", "coarser RAS", "sheared"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 4, 100])
def test_blocks_give_what_the_whole_gives(kind, axis, thickness, monkeypatch) -> None:
    monkeypatch.setattr(block_resampling, "BLOCK_VOXELS", 700)
    source_affine, target_affine, target_shape = target_of(kind)
    volume = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)(
        MetaTensor(volume, affine=torch.as_tensor(source_affine)),
        dst_affine=torch.as_tensor(target_affine),
        spatial_size=target_shape,
    )
    resampler = BlockResampler(source_affine, SHAPE, axis, target_affine, target_shape)
    result = torch.full((2, *target_shape), torch.nan)
    for start in range(0, SHAPE[axis], thickness):
        count = min(thickness, SHAPE[axis] - start)
        for place, values in resampler.take(start, volume.narrow(axis + 1, start, count)):
            assert result[(slice(None), *place)].isnan().all(), "written once"
            result[(slice(None), *place)] = values
    torch.testing.assert_close(result, whole.as_subclass(torch.Tensor).float(), rtol=0, atol=1e-3)


def test_blocks_that_are_done_with_are_forgotten() -> None:
    matrix = oblique()
    resampler = BlockResampler(matrix, (6, 5, 40), 2, matrix @ np.diag([1, 1, 0.5, 1]), (6, 5, 80))
    for start in range(0, 40, 4):
        list(resampler.take(start, torch.zeros(1, 6, 5, 4)))
        assert resampler.kept.shape[3] <= 5


def test_grids_with_shear_are_not_taken_for_aligned() -> None:
    source, target, shape = target_of("sheared")
    assert not BlockResampler(source, SHAPE, 0, target, shape).aligned
    assert BlockResampler(source, SHAPE, 1, target, shape).aligned  # its second axis is not in the shear
