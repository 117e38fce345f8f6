# SPDX-License-Identifier: Apache-2.0
"""Patches by hand: exact crops, quarter turns, mirrors, millimetres, and labels that stay on their image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd

from scripts.data.patches import RandPatchd

KEYS = ["image", "label"]


def item(shape=(20, 18, 16), seed=0):
    """A smooth image and the label of its bright part."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 5, 5, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]
    return {"image": image, "label": (image > 0.2).to(torch.int8), "case": "a"}


def transformed(transform, data, seed=0):
    return transform.set_random_state(seed)(data)


def with_fixed_affine(transform, matrix):
    """A transform that applies this matrix, mm, at the middle of the volume."""
    transform.prob = 1.0
    transform._draw_affine = lambda: np.asarray(matrix, float)
    return transform


def quarter_turn(axis):
    first, second = [a for a in range(3) if a != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = 0
    matrix[first, second], matrix[second, first] = 1, -1
    return matrix


@pytest.mark.parametrize("seed", range(5))
def test_without_motion_a_patch_is_a_crop_to_the_bit(seed):
    data = item()
    transform = RandPatchd(KEYS, (8, 6, 10), prob=0)
    result = transformed(transform, data, seed)
    place = tuple(slice(first, first + side) for first, side in zip(transform.start, (8, 6, 10), strict=True))
    assert all(torch.equal(result[key], data[key][(slice(None), *place)]) for key in KEYS)
    assert result["label"].dtype == torch.int8 and result["case"] == "a"


def test_a_crop_is_no_view_of_the_cached_volume():
    data = item()
    before = data["image"].clone()
    transformed(RandPatchd(KEYS, (20, 18, 16), prob=0), data)["image"].zero_()
    assert torch.equal(data["image"], before)


def test_the_identity_by_sampling_is_the_crop():
    data = item()
    sampled = transformed(with_fixed_affine(RandPatchd(KEYS, (8, 6, 10)), np.eye(3)), data)
    cropped = transformed(RandPatchd(KEYS, (8, 6, 10), prob=0), data)
    assert torch.allclose(sampled["image"], cropped["image"], atol=1e-5)
    assert torch.equal(sampled["label"], cropped["label"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_that_of_numpy(axis):
    data = item((16, 16, 16))
    result = transformed(with_fixed_affine(RandPatchd(KEYS, (16, 16, 16)), quarter_turn(axis)), data)
    plane = [a + 1 for a in range(3) if a != axis]
    assert np.allclose(result["image"], np.rot90(data["image"], 1, plane), atol=1e-5)
    assert np.array_equal(result["label"], np.rot90(data["label"], 1, plane))


@pytest.mark.parametrize("axes", [[0], [1, 2], [0, 1, 2]])
def test_mirrors_are_those_of_numpy(axes):
    data = item()
    result = transformed(RandPatchd(KEYS, (20, 18, 16), prob=0, flip_axes=axes, flip_prob=1), data)
    assert all(np.array_equal(result[key], np.flip(data[key].numpy(), [a + 1 for a in axes])) for key in KEYS)


@pytest.mark.parametrize("seed", range(6))
def test_a_label_drawn_as_a_threshold_of_the_image_still_is_one(seed):
    strong = dict(rotate=0.5, scale=0.3, anisotropy=0.1, shear=0.1, elastic_prob=1.0, elastic=0.1, flip_axes=[0, 1, 2])
    result = transformed(RandPatchd(KEYS, (24, 20, 16), (1.0, 1.5, 2.0), prob=1.0, **strong), item((40, 30, 24)), seed)
    image, label = result["image"], result["label"]
    assert 0.05 < label.float().mean() < 0.95
    # They may differ where linear and nearest interpolation draw the border: less than a voxel from each other.
    clear = (image - 0.2).abs() > 0.5
    assert clear.float().mean() > 0.2 and torch.equal((image > 0.2)[clear], label[clear] > 0)


def test_a_ball_in_millimetres_stays_one_in_anisotropic_voxels():
    spacing = np.array([1.0, 1.0, 3.0])
    axes = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip((48, 48, 16), spacing, strict=True)], indexing="ij"
    )
    radius = torch.from_numpy(np.sqrt(sum(a**2 for a in axes)))[None].float()
    transform = RandPatchd("image", (48, 48, 16), spacing, mode="bilinear", prob=1, rotate=0.6)
    for seed in range(3):
        turned = transformed(transform, {"image": radius}, seed)["image"]
        inside = radius < 20  # corners come from beyond the volume
        assert (turned - radius)[inside].abs().max() < 0.8, "a voxel is 3 mm long"
    voxels = RandPatchd("image", (48, 48, 16), mode="bilinear", prob=1, rotate=0.6)  # the control: wrong spacing
    assert (transformed(voxels, {"image": radius})["image"] - radius)[radius < 20].abs().max() > 3


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_volumes_smaller_than_the_patch_lie_in_the_middle(moved):
    data = item((4, 18, 7))
    transform = with_fixed_affine(RandPatchd(KEYS, (8, 6, 10)), np.eye(3))
    transform.prob = moved
    result = transformed(transform, data)
    first = transform.start[1]
    for key in KEYS:
        patch = data[key][:, :, first : first + 6]
        expected = np.pad(patch, [(0, 0), (2, 2), (0, 0), (1, 2)], mode="edge")
        assert np.allclose(result[key], expected, atol=1e-5), key


def test_what_comes_from_beyond_the_volume_repeats_the_edge_of_image_and_label():
    planes = torch.arange(16.0)[None, :, None, None].expand(1, 16, 16, 16)
    data = {"image": planes.contiguous(), "label": planes.to(torch.int8)}
    shrunk = with_fixed_affine(RandPatchd(KEYS, (16, 16, 16)), np.diag([2.0, 2.0, 2.0]))
    result = transformed(shrunk, data)
    expected = (2 * torch.arange(16.0) - 7.5).clamp(0, 15)[None, :, None, None].expand(1, 16, 16, 16)
    assert torch.allclose(result["image"], expected, atol=1e-5)
    assert result["label"][0, :4].eq(0).all() and result["label"][0, 12:].eq(15).all()


def test_jitter_moves_a_patch_of_the_size_of_the_volume():
    image = torch.arange(8.0)[None, :, None, None].expand(1, 8, 8, 8).contiguous()
    transform = RandPatchd("image", (8, 8, 8), mode="bilinear", prob=0, jitter=0.25)
    starts = set()
    for seed in range(60):
        result = transformed(transform, {"image": image}, seed)["image"]
        first = transform.start[0]
        starts.add(first)
        assert torch.equal(result[0, :, 0, 0], (torch.arange(8.0) + first).clamp(0, 7))
    assert starts == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_may_be_limited_to_one_axis(axis):
    transform = RandPatchd(KEYS, (4, 4, 4), rotate=[0.5 * (a == axis) for a in range(3)]).set_random_state(0)
    matrix = transform._draw_affine()
    assert np.allclose(matrix[axis], np.eye(3)[axis]) and np.allclose(matrix[:, axis], np.eye(3)[axis])
    assert not np.allclose(matrix, np.eye(3))


def test_ignored_voxels_keep_their_value():
    data = item()
    data["label"][:, :10] = -1
    result = transformed(RandPatchd(KEYS, (16, 16, 16), prob=1, rotate=0.5, elastic_prob=1, elastic=0.1), data)
    assert result["label"].dtype == torch.int8 and set(result["label"].unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("elastic_prob", [0.0, 1.0])
def test_a_seed_determines_the_patch(elastic_prob):
    transform = RandPatchd(KEYS, (12, 12, 12), prob=0.5, rotate=0.3, elastic_prob=elastic_prob, elastic=0.1)
    first, second, other = (transformed(transform, item(), seed)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_patches_are_centred_on_voxels_of_a_class_that_is_drawn_first():
    label = torch.zeros(1, 20, 18, 16, dtype=torch.int8)
    label[0, 9, 8, 7], label[0, 0, 0, 0], label[0, 5] = 1, 2, -1
    data = ClassesToIndicesd("label", num_classes=4)({"label": label, "image": label.float()})
    transform = RandPatchd(KEYS, (4, 4, 4), prob=0)
    classes = []
    for seed in range(60):
        result = transformed(transform, data, seed)
        assert "label_cls_indices" not in result
        inside = result["label"][0]
        classes.append(1 if inside[2, 2, 2] == 1 else 2 if inside[0, 0, 0] == 2 else int(inside[2, 2, 2]))
    assert -1 not in classes, "no patch is centred on an ignored voxel"
    assert min(classes.count(c) for c in (0, 1, 2)) > 10, "a class of one voxel is drawn as often as any other"


def test_without_lists_of_voxels_every_position_is_drawn():
    transform = RandPatchd("image", (4, 17, 16), mode="bilinear", prob=0)
    starts = {
        (transformed(transform, {"image": item()["image"]}, seed), tuple(transform.start))[1] for seed in range(300)
    }
    assert starts == {(x, y, 0) for x in range(17) for y in range(2)}


def test_the_deformation_has_the_strength_that_is_asked_for_and_does_not_fold():
    transform = RandPatchd("image", (33, 33, 33), mode="bilinear", prob=0, elastic_prob=1, elastic=0.1)
    size, shifts = np.array((33, 33, 33)), []
    for seed in range(60):
        transform.set_random_state(seed)
        transform.randomize((33, 33, 33))
        grid = transform._sampling_grid((33, 33, 33)).flip(-1).numpy()
        voxels = ((grid + 1) * size - 1) / 2
        shifts.append(voxels - np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1))
        assert all((np.diff(voxels[..., axis], axis=axis) > 0).all() for axis in range(3))
    # Control points are 8 voxels apart; the strength is uniform from 0 to a tenth of that.
    assert np.std(shifts) == pytest.approx(0.1 * 8 / math.sqrt(3), rel=0.15)


def test_scales_are_uniform_in_their_logarithm():
    transform = RandPatchd("image", (4, 4, 4), mode="bilinear", scale=0.25).set_random_state(0)
    logs = [math.log(np.cbrt(np.linalg.det(transform._draw_affine()))) for _ in range(300)]
    assert max(map(abs, logs)) <= math.log(1.25) and abs(np.mean(logs)) < 0.03
    assert np.std(logs) == pytest.approx(math.log(1.25) / math.sqrt(3), rel=0.1)


def test_meta_tensors_give_plain_patches_that_know_their_case():
    meta = {"filename_or_obj": "/scans/la_003.nii.gz"}
    data = {"image": MetaTensor(item()["image"], meta=meta)}
    result = transformed(RandPatchd(KEYS, (8, 8, 8), prob=1, rotate=0.3, allow_missing_keys=True), data)
    assert type(result["image"]) is torch.Tensor and result["case"] == "la_003" and "label" not in result


def test_several_channels_move_together():
    image = item()["image"]
    data = {"image": torch.cat([image, 2 * image])}
    result = transformed(RandPatchd("image", (9, 9, 9), mode="bilinear", prob=1, rotate=0.3), data)["image"]
    assert result.shape == (2, 9, 9, 9) and torch.allclose(result[1], 2 * result[0])
