# SPDX-License-Identifier: Apache-2.0
"""Metrics against the recorded numbers of the reference implementation (MedPy 0.5.2)."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scripts.evaluation.metrics import overlap_metrics, structure_metrics, surface_distances
from scripts.images.components import largest_component
from tests.golden.golden_files import GOLDEN_DIR, compare, found

TOLERANCE = 1e-5


def pairs():
    """Every (file, index) with a prediction and a target."""
    for path in sorted(GOLDEN_DIR.glob("surface_metrics*.npz")):
        with np.load(path) as arrays:
            indices = sorted(int(m[1]) for m in (re.fullmatch(r"pred_(\d+)", key) for key in arrays) if m)
        yield from (pytest.param(path, i, id=f"{path.stem}-{i}") for i in indices)


PAIRS = list(pairs()) or [pytest.param(None, 0, marks=pytest.mark.skip(reason=f"no golden metrics in {GOLDEN_DIR}"))]


@pytest.mark.parametrize(("path", "i"), PAIRS)
def test_recorded_pair_is_reproduced(path, i):
    golden = np.load(path)
    prediction, target, spacing = golden[f"pred_{i}"], golden[f"target_{i}"], golden["spacing"]
    dice, jaccard, hd95, asd = golden[f"out.dice_jaccard_hd95_asd_{i}"]
    hd95_mm, asd_mm = golden[f"out.hd95_asd_spacing_{i}"]
    expected = {"dice": dice, "jaccard": jaccard, "hd95_voxel": hd95, "asd_voxel": asd}
    expected |= {"hd95_mm": hd95_mm, "asd_mm": asd_mm}
    metrics = structure_metrics(prediction, target, spacing)
    assert metrics.pop("status") == "found" and 0 <= metrics.pop("surface_dice") <= 1
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        compare(path.stem, name, metrics[name], value, TOLERANCE)
    assert overlap_metrics(prediction, target) == pytest.approx((dice, jaccard), abs=TOLERANCE, rel=0)
    assert surface_distances(prediction, target) == pytest.approx((hd95, asd), abs=TOLERANCE, rel=0)
    assert surface_distances(prediction, target, spacing) == pytest.approx((hd95_mm, asd_mm), abs=TOLERANCE, rel=0)


@pytest.mark.parametrize(("path", "i"), PAIRS)
def test_recorded_distance_of_the_other_direction_is_reproduced(path, i):
    golden = np.load(path)
    _, asd = surface_distances(golden[f"target_{i}"], golden[f"pred_{i}"])
    assert asd == pytest.approx(float(golden[f"out.reverse_asd_{i}"]), abs=TOLERANCE, rel=0)


@pytest.mark.parametrize("path", found("largest_component*.npz"))
def test_recorded_largest_component_is_reproduced(path):
    golden = np.load(path)
    indices = [key.removeprefix("mask_") for key in golden if key.startswith("mask_")]
    assert indices
    for i in indices:
        compare(path.stem, "mask", largest_component(golden[f"mask_{i}"]), golden[f"out.largest_{i}"], 0)
