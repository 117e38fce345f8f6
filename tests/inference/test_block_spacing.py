# SPDX-License-Identifier: Apache-2.0
"""`Spacingd` in blocks gives what MONAI's gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Identityd, Spacingd

from scripts.inference import streaming as block_resampling
from scripts.inference import streaming as block_spacing
from scripts.inference.streaming import with_block_spacing
from tests.volume_files import affine, oblique


def sheared() -> np.ndarray:
    result = affine()
    result[0, 2] = 0.8
    return result


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(block_spacing, "BLOCK_VOXELS", 300)
    monkeypatch.setattr(block_resampling, "BLOCK_VOXELS", 300)


@pytest.mark.parametrize("matrix", [affine(), oblique(), sheared()], ids=["straight", "oblique", "sheared"])
@pytest.mark.parametrize("pixdim", [(1.0, 1.1, 1.2), (3.0, 2.5, 4.0), (1.5, 2.0, 2.5)])
def test_the_volume_and_its_place_are_those_of_monai(matrix, pixdim) -> None:
    image = MetaTensor(
        torch.randn(2, 14, 11, 9, generator=torch.Generator().manual_seed(0)), affine=torch.as_tensor(matrix)
    )
    whole = Compose([Identityd("image"), Spacingd("image", pixdim=pixdim, mode="bilinear")])
    expected = whole({"image": image})["image"]
    got = with_block_spacing(whole)({"image": image})["image"]
    torch.testing.assert_close(got.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.affine, expected.affine)


def test_the_chain_that_is_given_stays_as_it_is() -> None:
    spacing = Spacingd("image", pixdim=(1.0, 1.0, 1.0))
    resample = spacing.spacing_transform.sp_resample
    changed = with_block_spacing(Compose([Compose([spacing])]))
    assert spacing.spacing_transform.sp_resample is resample
    assert changed.transforms[0] is not spacing


def test_no_piece_is_larger_than_a_block(monkeypatch) -> None:
    sizes = []
    original = block_resampling.SpatialResample.__call__

    def spy(self, img, dst_affine=None, spatial_size=None, **options):
        sizes.append(int(np.prod(spatial_size)))
        return original(self, img, dst_affine=dst_affine, spatial_size=spatial_size, **options)

    monkeypatch.setattr(block_resampling.SpatialResample, "__call__", spy)
    image = MetaTensor(torch.zeros(1, 14, 11, 9), affine=torch.as_tensor(affine()))
    with_block_spacing(Compose([Spacingd("image", pixdim=(1.0, 1.1, 1.2))]))({"image": image})
    assert len(sizes) > 5 and max(sizes) <= 21 * 20 * 1  # a plane, where that is more than a block
