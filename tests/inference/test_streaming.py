# SPDX-License-Identifier: Apache-2.0
"""Sliding windows in rows, and resampling in blocks, give the same result as MONAI for the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Identityd, Spacingd, SpatialResample

from scripts.inference import streaming
from scripts.inference.streaming import BlockResampler, LabelInferer, longest_axis, stitched_rows, with_block_spacing
from tests.volume_files import affine, oblique, stored_as

# ---------------------------------------------------------------- rows of windows


def network(windows: torch.Tensor) -> torch.Tensor:
    """Two channels that depend on the position of a voxel in the window, so that blending matters."""
    places = torch.arange(windows[0, 0].numel(), dtype=torch.float32).reshape(windows.shape[2:])
    return torch.cat([windows * places, places.expand_as(windows)], dim=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, (0.6, 0.1, 0.5)])
@pytest.mark.parametrize("shape", [(21, 13, 10), (8, 15, 5), (6, 7, 4), (8, 8, 17)])
def test_blocks_together_equal_the_volume_that_monai_stitches(shape, overlap, mode, axis) -> None:
    inferer = SlidingWindowInferer((8, 8, 6), sw_batch_size=3, overlap=overlap, mode=mode)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    blocks = list(stitched_rows(image, inferer, network, axis))
    assert [start for start, _ in blocks] == [
        sum(block.shape[axis + 1] for _, block in blocks[:index]) for index in range(len(blocks))
    ]
    torch.testing.assert_close(
        torch.cat([block for _, block in blocks], dim=axis + 1), inferer(image[None], network)[0], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(21, 13, 10), (5, 7, 4)])
def test_label_inferer_gives_the_argmax_of_what_monai_stitches(shape) -> None:
    inferer = SlidingWindowInferer((8, 8, 6), sw_batch_size=3, overlap=0.5, mode="gaussian")
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))

    def centred(windows: torch.Tensor) -> torch.Tensor:
        return network(windows) - torch.tensor([0.0, 100.0])[:, None, None, None]

    labels = LabelInferer(inferer)(MetaTensor(images), centred)
    assert labels.shape == (2, 1, *shape) and 0 < labels.float().mean() < 1
    assert torch.equal(labels.long(), inferer(images, centred).argmax(dim=1, keepdim=True))


def test_the_inferer_gets_one_row_at_a_time() -> None:
    seen = []

    class Spy(SlidingWindowInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            seen.append(tuple(inputs.shape[2:]))
            return super().__call__(inputs, network, *args, **kwargs)

    list(stitched_rows(torch.zeros(1, 9, 10, 40), Spy((8, 8, 8), overlap=0.5), network, axis=2))
    assert seen == [(9, 10, 8)] * 9  # 0, 4, ..., 32


@pytest.mark.parametrize(("shape", "batches"), [((8, 24, 8), [3, 2]), ((16, 16, 8), [3, 3, 3]), ((12, 12, 12), [4, 4])])
def test_the_windows_of_a_row_are_divided_into_even_batches(shape, batches) -> None:
    """5, 9 and 2 x 4 windows."""
    seen = []

    def spy(windows: torch.Tensor) -> torch.Tensor:
        seen.append(len(windows))
        return windows

    list(stitched_rows(torch.zeros(1, *shape), SlidingWindowInferer((8, 8, 8), 4, overlap=0.5), spy, axis=2))
    assert seen == batches


def test_rows_follow_the_axis_with_the_most_windows() -> None:
    assert longest_axis((512, 512, 600), (128, 128, 96)) == 2
    assert longest_axis((300, 64, 60), (128, 128, 16)) == 2
    assert longest_axis((300, 64, 16), (128, 128, 16)) == 0


# ---------------------------------------------------------------- resampling in blocks

SHAPE = (14, 11, 9)


def sheared(spacing: tuple[float, float, float], amount: float) -> np.ndarray:
    result = affine(spacing)
    result[0, 2] = amount
    return result


def target_of(kind: str) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Source affine, target affine and target shape, for a finer or coarser grid over the same region."""
    source = oblique((1.5, 2.0, 2.5))
    if kind == "sheared":
        return affine((1.5, 2.0, 2.5)), sheared((1.0, 1.5, 2.0), 0.9), (18, 12, 10)
    spacing, shape = {"finer": ((0.7, 0.9, 1.1), (30, 24, 20)), "coarser": ((3.1, 4.2, 5.3), (6, 5, 4))}[kind[:-4]]
    array, matrix = stored_as(np.zeros(shape), oblique(spacing), kind[-3:])
    return source, matrix, array.shape


@pytest.mark.parametrize("kind", ["finer RAS", "finer PIR", "finer LPS", "coarser ASL", "coarser RAS", "sheared"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 4, 100])
def test_resampling_in_blocks_equals_resampling_the_whole_volume(kind, axis, thickness, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", 700)
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


def test_blocks_are_dropped_when_they_are_no_longer_needed() -> None:
    matrix = oblique()
    resampler = BlockResampler(matrix, (6, 5, 40), 2, matrix @ np.diag([1, 1, 0.5, 1]), (6, 5, 80))
    for start in range(0, 40, 4):
        list(resampler.take(start, torch.zeros(1, 6, 5, 4)))
        assert resampler.kept.shape[3] <= 5


def test_sheared_grids_are_not_aligned() -> None:
    source, target, shape = target_of("sheared")
    assert not BlockResampler(source, SHAPE, 0, target, shape).aligned
    assert BlockResampler(source, SHAPE, 1, target, shape).aligned  # its second axis is not sheared


# ---------------------------------------------------------------- Spacingd in blocks


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", 300)


@pytest.mark.parametrize(
    "matrix", [affine(), oblique(), sheared((1.5, 2.0, 2.5), 0.8)], ids=["straight", "oblique", "sheared"]
)
@pytest.mark.parametrize("pixdim", [(1.0, 1.1, 1.2), (3.0, 2.5, 4.0), (1.5, 2.0, 2.5)])
def test_voxels_and_affine_equal_those_of_monai(matrix, pixdim, small_blocks) -> None:
    image = MetaTensor(
        torch.randn(2, 14, 11, 9, generator=torch.Generator().manual_seed(0)), affine=torch.as_tensor(matrix)
    )
    whole = Compose([Identityd("image"), Spacingd("image", pixdim=pixdim, mode="bilinear")])
    expected = whole({"image": image})["image"]
    got = with_block_spacing(whole)({"image": image})["image"]
    torch.testing.assert_close(got.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.affine, expected.affine)


def test_the_given_transforms_are_not_changed() -> None:
    spacing = Spacingd("image", pixdim=(1.0, 1.0, 1.0))
    resample = spacing.spacing_transform.sp_resample
    changed = with_block_spacing(Compose([Compose([spacing])]))
    assert spacing.spacing_transform.sp_resample is resample
    assert changed.transforms[0] is not spacing


def test_no_part_is_larger_than_a_block(small_blocks, monkeypatch) -> None:
    sizes = []
    original = streaming.SpatialResample.__call__

    def spy(self, img, dst_affine=None, spatial_size=None, **options):
        sizes.append(int(np.prod(spatial_size)))
        return original(self, img, dst_affine=dst_affine, spatial_size=spatial_size, **options)

    monkeypatch.setattr(streaming.SpatialResample, "__call__", spy)
    image = MetaTensor(torch.zeros(1, 14, 11, 9), affine=torch.as_tensor(affine()))
    with_block_spacing(Compose([Spacingd("image", pixdim=(1.0, 1.1, 1.2))]))({"image": image})
    assert len(sizes) > 5 and max(sizes) <= 21 * 20 * 1  # one plane, which is more than a block
