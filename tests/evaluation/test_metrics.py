# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface metrics against values computed by hand and against all pairwise distances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import compute_surface_dice

from scripts.evaluation.metrics import METRICS, StructureDice, overlap_metrics, structure_metrics, surface_distances
from scripts.evaluation.statistics import case_rows, summarise

SHAPE = (7, 9, 5)


def mask_of(*voxels, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def surface_by_neighbours(mask):
    """Mask voxels with one of six neighbours outside the mask or outside the volume, one voxel at a time."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = voxel.copy()
            other[axis] += step
            inside = all(0 <= o < n for o, n in zip(other, mask.shape, strict=True))
            if not inside or not mask[tuple(other)]:
                found.append(voxel)
                break
    return np.array(found)


def distances_by_all_pairs(prediction, reference, spacing):
    """95HD and ASD from the full table of distances, with the percentile written out."""
    a = surface_by_neighbours(prediction) * np.array(spacing, dtype=float)
    b = surface_by_neighbours(reference) * np.array(spacing, dtype=float)
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    pooled = sorted([*table.min(1), *table.min(0)])
    place = 0.95 * (len(pooled) - 1)
    low = math.floor(place)
    high = min(low + 1, len(pooled) - 1)
    return pooled[low] + (place - low) * (pooled[high] - pooled[low]), table.min(1).mean()


def blob(rng, shape, fraction):
    """An irregular mask with holes and isolated voxels, about `fraction` of the volume."""
    smooth = rng.random(shape)
    for axis in range(3):
        smooth = smooth + np.roll(smooth, 1, axis)
    return smooth > np.quantile(smooth, 1 - fraction)


def test_same_mask_has_full_overlap_and_no_distance():
    cube = np.zeros(SHAPE, dtype=bool)
    cube[2:5, 3:6, 1:4] = True
    assert overlap_metrics(cube, cube) == (1.0, 1.0)
    assert surface_distances(cube, cube, (0.5, 1, 2)) == (0.0, 0.0)
    assert structure_metrics(cube, cube, (0.5, 1, 2))["status"] == "found"


def test_overlap_of_two_pairs_of_voxels_that_share_one():
    prediction, reference = mask_of((1, 1, 1), (2, 1, 1)), mask_of((2, 1, 1), (3, 1, 1))
    dice, jaccard = overlap_metrics(prediction, reference)
    assert dice == pytest.approx(0.5)  # 2 * 1 / (2 + 2)
    assert jaccard == pytest.approx(1 / 3)


def test_disjoint_masks_do_not_overlap():
    assert overlap_metrics(mask_of((0, 0, 0)), mask_of((1, 1, 1))) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("voxel", "in_voxels", "in_mm"), [((3, 1, 1), 2, 1.0), ((1, 3, 1), 2, 2.0), ((1, 1, 3), 2, 6.0)]
)
def test_distances_along_each_axis_of_an_anisotropic_spacing(voxel, in_voxels, in_mm):
    metrics = structure_metrics(mask_of((1, 1, 1)), mask_of(voxel), (0.5, 1.0, 3.0))
    assert metrics["hd95_voxel"] == metrics["asd_voxel"] == pytest.approx(in_voxels)
    assert metrics["hd95_mm"] == metrics["asd_mm"] == pytest.approx(in_mm)


def test_two_voxels_two_mm_apart():
    assert surface_distances(mask_of((2, 2, 2)), mask_of((2, 2, 3)), (9, 9, 2)) == pytest.approx((2, 2))


def test_diagonal_neighbours_are_a_euclidean_distance_apart():
    assert surface_distances(mask_of((2, 2, 2)), mask_of((5, 6, 2)), None) == pytest.approx((5, 5))


def test_asd_goes_from_prediction_to_reference_only():
    near, far = (3, 4, 2), (3, 8, 2)
    # From {near, far} to {near}: 0 and 4. From {near}: 0.
    assert surface_distances(mask_of(near, far), mask_of(near), None)[1] == pytest.approx(2)
    assert surface_distances(mask_of(near), mask_of(near, far), None)[1] == pytest.approx(0)


def test_hd95_pools_both_directions_before_the_percentile():
    # Distances 0, 4 one way and 0 the other: pooled [0, 0, 4], place 0.95 * 2 = 1.9, so 0.9 * 4 = 3.6. The larger of
    # the two directed percentiles would be 0.95 * 4 = 3.8.
    near, far = (3, 4, 2), (3, 8, 2)
    assert surface_distances(mask_of(near, far), mask_of(near), None)[0] == pytest.approx(3.6)
    assert surface_distances(mask_of(near), mask_of(near, far), None)[0] == pytest.approx(3.6)


def test_the_inside_of_a_solid_structure_is_not_surface():
    cube, centre = np.zeros(SHAPE, dtype=bool), mask_of((3, 4, 2))
    cube[2:5, 3:6, 1:4] = True
    # 26 surface voxels around the centre: 6 at 1, 12 at sqrt 2, 8 at sqrt 3; the centre itself is not among them.
    expected = (6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)) / 26
    assert surface_distances(cube, centre, None)[1] == pytest.approx(expected)


def test_voxels_on_the_volume_border_are_surface():
    full = np.ones((3, 3, 3), dtype=bool)
    centre = mask_of((1, 1, 1), shape=(3, 3, 3))
    expected = (6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)) / 26
    assert surface_distances(full, centre, None)[1] == pytest.approx(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", ["first", "last"])
def test_slabs_on_each_border_agree_with_all_pairs(axis, side):
    part = [slice(1, -1)] * 3
    part[axis] = slice(0, 3) if side == "first" else slice(-3, None)
    slab, corner = np.zeros(SHAPE, dtype=bool), mask_of((0, 0, 0), (6, 8, 4), (6, 0, 0))
    slab[tuple(part)] = True
    spacing = (0.7, 1.3, 2.1)
    for prediction, reference in ((slab, corner), (corner, slab)):
        expected = distances_by_all_pairs(prediction, reference, spacing)
        assert surface_distances(prediction, reference, spacing) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.625, 1.25, 2.0), (3.0, 0.4, 0.9)])
@pytest.mark.parametrize("seed", range(4))
def test_irregular_masks_agree_with_all_pairs(seed, spacing):
    rng = np.random.default_rng(seed)
    prediction, reference = blob(rng, SHAPE, 0.1 + 0.2 * seed), blob(rng, SHAPE, 0.4)
    metrics = structure_metrics(prediction, reference, spacing)
    in_voxels = distances_by_all_pairs(prediction, reference, (1, 1, 1))
    in_mm = distances_by_all_pairs(prediction, reference, spacing)
    assert (metrics["hd95_voxel"], metrics["asd_voxel"]) == pytest.approx(in_voxels, abs=1e-5)
    assert (metrics["hd95_mm"], metrics["asd_mm"]) == pytest.approx(in_mm, abs=1e-5)
    first, second = ({tuple(v) for v in np.argwhere(m)} for m in (prediction, reference))
    assert metrics["dice"] == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
    assert metrics["jaccard"] == pytest.approx(len(first & second) / len(first | second))


def test_structure_absent_in_both_is_nan_everywhere():
    empty = mask_of()
    metrics = structure_metrics(empty, empty, (1, 2, 3))
    assert metrics.pop("status") == "absent"
    assert list(metrics) == list(METRICS)
    assert all(math.isnan(v) for v in metrics.values())
    assert all(math.isnan(v) for v in overlap_metrics(empty, empty) + surface_distances(empty, empty))


@pytest.mark.parametrize("status", ["missed", "false_positive"])
def test_missed_and_false_positive_structures_count_as_the_volume_diagonal(status):
    empty, present = mask_of(shape=(3, 4, 12)), mask_of((1, 1, 1), shape=(3, 4, 12))
    pair = (empty, present) if status == "missed" else (present, empty)
    metrics = structure_metrics(*pair, (4.0, 1.0, 1.0 / 3.0))
    assert metrics["status"] == status
    assert metrics["dice"] == metrics["jaccard"] == 0
    assert metrics["hd95_voxel"] == metrics["asd_voxel"] == pytest.approx(13)  # 3, 4, 12
    assert metrics["hd95_mm"] == metrics["asd_mm"] == pytest.approx(math.sqrt(12**2 + 4**2 + 4**2))
    assert surface_distances(*pair, None) == pytest.approx((13, 13))


def test_a_miss_is_farther_than_opposite_corners():
    corners = mask_of((0, 0, 0)), mask_of((6, 8, 4))
    assert surface_distances(*corners)[0] < surface_distances(mask_of(), corners[1])[0]


def test_unknown_spacing_gives_nan_in_mm_only():
    for prediction in (mask_of((1, 1, 1)), mask_of()):
        metrics = structure_metrics(prediction, mask_of((1, 1, 3)), None)
        assert math.isnan(metrics["hd95_mm"]) and math.isnan(metrics["asd_mm"])
        assert metrics["hd95_voxel"] > 1 and metrics["asd_voxel"] > 1


@pytest.mark.parametrize(
    "kind",
    [
        lambda m: m.astype(np.uint8),
        lambda m: m.astype(np.float32),
        lambda m: torch.from_numpy(m),
        lambda m: torch.from_numpy(m).to(torch.bfloat16),
        lambda m: MetaTensor(torch.from_numpy(m).long()),
        lambda m: np.asfortranarray(m)[::-1, ::-1, ::-1][::-1, ::-1, ::-1],
    ],
    ids=["uint8", "float32", "tensor", "bfloat16", "metatensor", "strided"],
)
def test_every_type_of_mask_gives_the_same_numbers(kind):
    prediction, reference = kind(mask_of((3, 4, 2), (3, 8, 2))), kind(mask_of((3, 4, 2)))
    assert overlap_metrics(prediction, reference) == pytest.approx((2 / 3, 1 / 2))
    assert surface_distances(prediction, reference) == pytest.approx((3.6, 2))


def test_inputs_are_not_changed():
    prediction, reference = torch.ones(3, 4, 5, dtype=torch.int64), torch.zeros(3, 4, 5, dtype=torch.int64)
    reference[1, 2, 3] = 1
    structure_metrics(prediction, reference, (1, 2, 3))
    assert prediction.sum() == 60 and reference.sum() == 1 and reference[1, 2, 3] == 1


@pytest.mark.parametrize("function", [overlap_metrics, surface_distances, lambda p, r: structure_metrics(p, r, None)])
def test_wrong_masks_are_refused_by_name(function):
    good = np.zeros((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"prediction.*\(2, 3, 4\).*\(2, 4, 3\)"):
        function(np.zeros((2, 4, 3)), good)
    with pytest.raises(ValueError, match=r"reference.*\(1, 2, 3, 4\)"):
        function(good, good[None])
    with pytest.raises(ValueError, match=r"prediction.* 2"):
        function(good + 2 * np.eye(4, dtype=int)[1:3, 1:][:, :, None].repeat(4, 2)[:, :3], good)
    with pytest.raises(ValueError, match=r"reference.* nan"):
        function(good, np.full((2, 3, 4), np.nan))


@pytest.mark.parametrize("spacing", [2.0, (1, 1), (1, 1, 0), (1, -1, 1), (1, 1, math.nan), (1, 1, math.inf), "abc"])
def test_wrong_spacing_is_refused(spacing):
    mask = mask_of((1, 1, 1))
    for function in (surface_distances, structure_metrics):
        with pytest.raises(ValueError, match="spacing"):
            function(mask, mask, spacing)


# ------------------------------------------------------------------ Dice during training


def volume(*classes):
    return torch.tensor(classes).reshape(1, 1, 1, -1)


def mean_of(*pairs, classes=3):
    metric = StructureDice(classes)
    for prediction, reference in pairs:
        metric([prediction], [reference])
    return metric.aggregate().item()


FOUND = (volume(0, 1, 1, 2), volume(0, 1, 2, 2))  # 2/3 and 2/3
MISSED = (volume(0, 1, 0, 0), volume(0, 1, 2, 2))  # 1 and 0
INVENTED = (volume(0, 1, 2, 0), volume(0, 1, 0, 0))  # 1 and 0
ABSENT = (volume(0, 1, 0, 0), volume(0, 1, 0, 0))  # 1 and nothing


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([FOUND], 2 / 3),
        ([MISSED], 0.5),
        ([INVENTED], 0.5),
        ([ABSENT], 1.0),
        ([FOUND, INVENTED, ABSENT], ((2 / 3 + 2) / 3 + (2 / 3 + 0) / 2) / 2),
        ([(volume(0, 0), volume(0, 0))], 0.0),
    ],
)
def test_mean_over_cases_and_then_over_classes(pairs, expected):
    assert mean_of(*pairs) == pytest.approx(expected)


def test_structure_dice_equals_the_mean_dice_of_the_summary():
    draw = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randint(0, 4, (1, 3, 4, 5), generator=draw) for _ in range(2)) for _ in range(4)]
    pairs[1][1][pairs[1][1] == 3] = 0
    names = dict(enumerate("abcd"))
    rows = [row for n, (p, r) in enumerate(pairs) for row in case_rows(str(n), p[0], r[0], (1, 1, 1), names)]
    assert mean_of(*pairs, classes=4) == pytest.approx(summarise(rows, names)["mean_dice"])


def test_structure_dice_starts_again_after_a_reset():
    metric = StructureDice(3)
    for prediction, reference in (MISSED, ABSENT):
        metric.reset()
        metric([prediction], [reference])
    assert metric.aggregate().item() == 1.0


# ------------------------------------------------------------------ surface Dice


def cube_at(d, h, w):
    cube = np.zeros((9, 9, 9), dtype=bool)
    cube[d : d + 3, h : h + 3, w : w + 3] = True
    return cube


@pytest.mark.parametrize(
    ("moved", "tolerance", "expected"),
    [
        # A cube of 3 x 3 x 3 voxels has 26 surface voxels. One slice (3 mm) apart along the last axis, the layers at
        # both ends (9 voxels each) differ. The inner layer of one cube lies on an end layer of the other, except that
        # its centre lies inside the other's.
        ((3, 3, 4), 0.1, 2 * 16 / 52),  # the 8 + 8 voxels of rings that both have
        ((3, 3, 4), 0.5, 2 * 17 / 52),  # and the centre of the near end layer, 0.5 mm from the ring around it
        ((3, 3, 4), 2.9, 2 * 17 / 52),
        ((3, 3, 4), 3.0, 1.0),
        # Along the first axis the same shift is 0.5 mm.
        ((4, 3, 3), 0.4, 2 * 16 / 52),
        ((4, 3, 3), 0.5, 1.0),
    ],
)
def test_surface_dice_of_shifted_cubes_in_anisotropic_spacing(moved, tolerance, expected):
    a, b = cube_at(3, 3, 3), cube_at(*moved)
    spacing = (0.5, 1.0, 3.0)
    for pair in ((a, b), (b, a)):
        assert structure_metrics(*pair, spacing, tolerance)["surface_dice"] == pytest.approx(expected)


@pytest.mark.parametrize("tolerance", [0.0, 0.9, 2.0])
def test_surface_dice_is_that_of_monai(tolerance):
    rng = np.random.default_rng(3)
    a, b = blob(rng, SHAPE, 0.3), blob(rng, SHAPE, 0.4)
    spacing = (0.7, 1.1, 1.9)
    pair = (torch.as_tensor(mask)[None, None].float() for mask in (a, b))
    expected = compute_surface_dice(*pair, [tolerance], include_background=True, spacing=spacing).item()
    assert structure_metrics(a, b, spacing, tolerance)["surface_dice"] == pytest.approx(expected)


def test_rounding_of_the_spacing_does_not_put_a_neighbour_outside_the_tolerance():
    metrics = structure_metrics(mask_of((1, 1, 1)), mask_of((2, 1, 1)), (1.0000002, 1.0, 1.0), 1.0)
    assert metrics["surface_dice"] == 1


def test_surface_dice_of_empty_masks_and_of_unknown_spacing():
    empty, voxel = mask_of(), mask_of((1, 1, 1))
    assert structure_metrics(voxel, empty, (1, 1, 1))["surface_dice"] == 0
    assert structure_metrics(empty, voxel, (1, 1, 1))["surface_dice"] == 0
    assert math.isnan(structure_metrics(empty, empty, (1, 1, 1))["surface_dice"])
    assert math.isnan(structure_metrics(voxel, voxel, None)["surface_dice"])
