# SPDX-License-Identifier: Apache-2.0
"""Rows and summary of a report, compared with numbers computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from scripts.evaluation.statistics import COLUMNS, bootstrap_interval, case_rows, region_labels, summarise

NAMES = {0: "background", 1: "liver", 2: "spleen"}


def row(case, label, status="found", dice=1.0, **others):
    values = {"dice": dice, "jaccard": dice, "hd95_voxel": 1.0, "asd_voxel": 1.0, "hd95_mm": 1.0, "asd_mm": 1.0}
    values["surface_dice"] = dice
    if status == "absent":
        values = dict.fromkeys(values, math.nan)
    return {"case": case, "class": NAMES[label], "label": label, **values, "status": status, **others}


def test_one_row_for_each_foreground_class_in_order_of_label():
    prediction, reference = np.zeros((2, 3, 4), dtype=np.uint8), np.zeros((2, 3, 4), dtype=np.uint8)
    prediction[0, 0, 0], reference[0, 0, 2] = 1, 1
    reference[1, 1, 1] = 5
    rows = case_rows("a", prediction, reference, (1.0, 1.0, 3.0), {5: "tumour", 1: "liver", 0: "background"})
    assert [tuple(r) for r in rows] == [COLUMNS, COLUMNS]
    assert [(r["case"], r["class"], r["label"], r["status"]) for r in rows] == [
        ("a", "liver", 1, "found"),
        ("a", "tumour", 5, "missed"),
    ]
    assert (rows[0]["dice"], rows[0]["hd95_voxel"], rows[0]["hd95_mm"]) == pytest.approx((0, 2, 6))
    assert rows[1]["hd95_mm"] == pytest.approx(math.sqrt(2**2 + 3**2 + 12**2))


def test_regions_are_unions_of_classes_and_may_overlap():
    prediction, reference = torch.zeros((2, 3, 4), dtype=torch.int8), torch.zeros((2, 3, 4), dtype=torch.int8)
    reference[0, 0] = torch.tensor([1, 1, 2, 3])
    prediction[0, 0] = torch.tensor([2, 1, 1, 0])
    classes = {0: "background", 1: "core", 2: "oedema", 3: "enhancing"}
    regions = {
        "whole": ["core", "oedema", "enhancing"],
        "tumour core": ["core", "enhancing"],
        "enhancing": ["enhancing"],
    }
    names, members = region_labels(classes, regions)
    rows = case_rows("a", prediction, reference, None, names, members=members)
    assert [row["class"] for row in rows] == list(regions)
    # whole: 3 of 3 and 4 voxels; core: {1, 2} and {0, 1, 3}, one in common; enhancing is missed.
    assert [row["dice"] for row in rows] == pytest.approx([2 * 3 / 7, 2 * 1 / 5, 0])
    assert [row["status"] for row in rows] == ["found", "found", "missed"]
    assert summarise(rows, names)["mean_dice"] == pytest.approx((6 / 7 + 2 / 5) / 3)


@pytest.mark.parametrize("classes", [[], ["bone"], ["background"]])
def test_a_region_of_what_is_no_class_is_refused_by_name(classes):
    with pytest.raises(ValueError, match="whole"):
        region_labels({0: "background", 1: "core"}, {"whole": classes})


def test_labels_without_a_name_belong_to_no_class():
    reference = np.array([[[1, 2, 2, 0]]])
    prediction = np.array([[[1, 1, 2, 2]]])
    liver, spleen = case_rows("a", prediction, reference, None, NAMES)
    assert (liver["dice"], liver["jaccard"]) == pytest.approx((2 / 3, 1 / 2))
    assert (spleen["dice"], spleen["jaccard"]) == pytest.approx((1 / 2, 1 / 3))


def test_whole_numbers_may_be_floats_but_probabilities_are_refused():
    labels = torch.tensor([[[0.0, 1.0, 2.0]]])
    assert [r["dice"] for r in case_rows("a", labels, labels, None, NAMES)] == [1, 1]
    with pytest.raises(ValueError, match=r"prediction.*0\.5"):
        case_rows("a", labels / 2, labels, None, NAMES)
    with pytest.raises(ValueError, match=r"reference.*\(1, 1, 1, 3\)"):
        case_rows("a", labels, labels[None], None, NAMES)


@pytest.mark.parametrize("names", [{0: "background"}, {}, {1: "liver", 2: "liver"}, {"1": "liver"}])
def test_invalid_label_names_are_refused(names):
    with pytest.raises(ValueError, match="label_names"):
        summarise([], names)


def test_mean_is_over_the_cases_of_a_class_and_then_over_classes():
    rows = [row("a", 1, dice=0.9), row("b", 1, dice=0.7), row("c", 1, dice=0.8)]
    rows += [row("a", 2, dice=0.2), row("b", 2, "absent"), row("c", 2, "absent")]
    summary = summarise(rows, NAMES)
    assert summary["per_class"]["liver"]["mean_dice"] == pytest.approx(0.8)
    assert summary["per_class"]["spleen"]["mean_dice"] == pytest.approx(0.2)
    assert summary["mean_dice"] == pytest.approx(0.5)  # the mean over the four counted rows would be 0.65
    assert summary["num_cases"] == 3
    assert [summary["per_class"][n]["num_cases"] for n in ("liver", "spleen")] == [3, 1]


def test_each_metric_has_its_own_mean():
    a = row("a", 1, dice=0.5, jaccard=0.1, hd95_voxel=2.0, asd_voxel=4.0, hd95_mm=6.0, asd_mm=8.0, surface_dice=0.2)
    b = row("b", 1, dice=0.7, jaccard=0.3, hd95_voxel=3.0, asd_voxel=6.0, hd95_mm=9.0, asd_mm=12.0, surface_dice=0.6)
    summary = summarise([a, b], {1: "liver"})
    expected = {"dice": 0.6, "jaccard": 0.2, "hd95_voxel": 2.5, "asd_voxel": 5.0, "hd95_mm": 7.5, "asd_mm": 10.0}
    expected["surface_dice"] = 0.4
    for name, value in expected.items():
        assert summary[f"mean_{name}"] == pytest.approx(value)
        assert summary["per_class"]["liver"][f"mean_{name}"] == pytest.approx(value)


def test_standard_deviation_is_that_of_the_population():
    summary = summarise([row("a", 1, dice=0.6), row("b", 1, dice=0.8)], {1: "liver"})
    assert summary["per_class"]["liver"]["std_dice"] == pytest.approx(0.1)


def test_misses_and_false_positives_are_counted_and_lower_the_mean():
    rows = [row("a", 1, "missed", dice=0.0), row("b", 1), row("a", 2, "false_positive", dice=0.0), row("b", 2)]
    rows += [row("c", 2, "false_positive", dice=0.0), row("c", 1, "absent")]
    summary = summarise(rows, NAMES)
    assert (summary["missed"], summary["false_positives"]) == (1, 2)
    assert summary["per_class"]["liver"]["mean_dice"] == pytest.approx(1 / 2)
    assert summary["per_class"]["spleen"]["mean_dice"] == pytest.approx(1 / 3)
    liver, spleen = summary["per_class"]["liver"], summary["per_class"]["spleen"]
    assert (liver["missed"], liver["false_positives"]) == (1, 0)
    assert (spleen["missed"], spleen["false_positives"]) == (0, 2)


def test_class_without_a_case_is_null_and_not_in_the_mean():
    summary = summarise([row("a", 1, dice=0.9), row("a", 2, "absent")], NAMES)
    assert summary["mean_dice"] == pytest.approx(0.9)
    assert summary["per_class"]["spleen"]["mean_dice"] is None
    assert summary["per_class"]["spleen"]["std_dice"] is None
    assert summary["per_class"]["spleen"]["num_cases"] == 0
    json.dumps(summary, allow_nan=False)


def test_distance_in_mm_is_null_if_the_spacing_is_unknown():
    summary = summarise([row("a", 1, hd95_mm=math.nan, asd_mm=math.nan)], {1: "liver"})
    assert summary["mean_hd95_mm"] is None and summary["mean_hd95_voxel"] == 1
    json.dumps(summary, allow_nan=False)


def test_no_rows_give_a_summary_of_nulls():
    summary = summarise([], NAMES)
    assert summary["num_cases"] == 0 and summary["mean_dice"] is None
    json.dumps(summary, allow_nan=False)


def test_row_of_an_unnamed_label_is_refused():
    with pytest.raises(ValueError, match=r"label_names.*\[2\]"):
        summarise([row("a", 2)], {1: "liver"})


# ------------------------------------------------------------------ intervals


def test_equal_values_give_an_interval_without_width():
    assert bootstrap_interval(np.full((6, 1), 0.75)) == [0.75, 0.75]


def test_interval_is_that_of_all_possible_resamples():
    """Of six zeros and ones, half each, the mean of a resample is binomial: 6 draws of probability 1/2.

    P(mean = 0) = 1/64 = 1.6 %, less than 2.5 %, and P(mean <= 1/6) = 7/64 = 10.9 %: the percentiles are 1/6 and 5/6.
    """
    assert bootstrap_interval(np.array([[0.0], [1.0]] * 3)) == pytest.approx([1 / 6, 5 / 6])


def test_classes_of_a_case_are_drawn_together():
    values = np.linspace(0, 1, 8)
    assert bootstrap_interval(np.stack([values, 1 - values], axis=1)) == pytest.approx([0.5, 0.5])


def test_interval_has_the_same_weights_as_the_mean():
    """Class 1 is in all twelve cases with Dice 1, class 2 in six of them with Dice 0: the mean is always 1/2."""
    values = np.array([[1.0, 0.0]] * 6 + [[1.0, math.nan]] * 6)
    assert bootstrap_interval(values) == pytest.approx([0.5, 0.5])


def test_interval_is_the_same_each_time_and_ignores_cases_without_any_structure():
    values = np.random.default_rng(1).random((7, 2))
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert bootstrap_interval(np.concatenate([values, np.full((3, 2), math.nan)])) == [low, high]


@pytest.mark.parametrize("counted", [0, 1, 5])
def test_fewer_than_six_cases_of_a_class_give_no_interval(counted):
    values = np.full((8, 2), 0.5)
    values[counted:, 1] = math.nan
    # A class that is in no case is not in the mean either.
    assert bootstrap_interval(values) == ([0.5, 0.5] if counted == 0 else None)
    assert bootstrap_interval(values[:counted]) is None


def test_summary_has_an_interval_where_there_are_enough_cases():
    rows = [row(str(case), 1, dice=0.5) for case in range(6)] + [row("0", 2, dice=0.5)]
    summary = summarise(rows, NAMES)
    assert summary["per_class"]["liver"]["dice_interval"] == [0.5, 0.5]
    assert summary["per_class"]["spleen"]["dice_interval"] is None
    assert summary["dice_interval"] is None and "6 cases" in summary["interval_note"]
    assert summarise(rows[:6], {1: "liver"})["dice_interval"] == [0.5, 0.5]
