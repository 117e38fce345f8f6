# SPDX-License-Identifier: Apache-2.0
"""Volumes, their agreement, and the shape of predictions."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.report.cases import StructureMeasures, agreement, measure
from scripts.report.pictures import CaseVolumes


def test_volumes_are_voxels_times_their_size() -> None:
    prediction, reference = (np.zeros((10, 10, 10), np.uint8) for _ in range(2))
    prediction[2:4, 2:5, 2:6], reference[2:4, 2:4, 2:4] = 2, 2  # 24 and 8 voxels of 3 mm3
    measured = measure(CaseVolumes((1.0, 1.5, 2.0), prediction, reference), ["a", "b"])
    assert measured["a"] == StructureMeasures(0.0, 0.0, False, 0)
    assert measured["b"].prediction_ml == pytest.approx(0.072) and measured["b"].reference_ml == pytest.approx(0.024)


def test_the_border_counts_if_only_the_prediction_reaches_it() -> None:
    prediction, reference = (np.zeros((6, 6, 6), np.uint8) for _ in range(2))
    prediction[3:, 2:4, 2:4] = 1
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].at_border
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction, reference), ["a"])["a"].at_border
    reference[4:, 2:4, 2:4] = 1
    assert not measure(CaseVolumes((1.0, 1.0, 1.0), prediction, reference), ["a"])["a"].at_border
    assert not measure(CaseVolumes((1.0, 1.0, 1.0), np.roll(prediction, -1, 0)), ["a"])["a"].at_border


def test_specks_are_no_large_components() -> None:
    prediction = np.zeros((20, 20, 20), np.uint8)
    prediction[2:8, 2:8, 2:8] = 1  # 216 voxels
    prediction[15, 15, 2:18] = 1  # 16 voxels, less than a tenth
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].large_components == 1
    prediction[15, 16, 2:18] = 1
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].large_components == 2


def test_limits_of_agreement_by_hand() -> None:
    pairs = [(1.0, 2.0), (3.0, 3.0), (5.0, 4.0), (0.0, 0.0)]
    measured = {str(n): {"a": StructureMeasures(p, r, False, 1)} for n, (p, r) in enumerate(pairs)}
    measured["without"] = {"a": StructureMeasures(1.0, None, False, 1)}
    (of_a,) = agreement(measured, ["a", "b"])
    assert (of_a["num_cases"], of_a["bias"]) == (3, 0.0)  # differences -1, 0, 1: their standard deviation is 1
    assert of_a["limits"] == pytest.approx((-1.96, 1.96))
    (of_two,) = agreement({key: measured[key] for key in "01"}, ["a"])
    assert of_two["limits"] is None and of_two["bias"] == -0.5
