# SPDX-License-Identifier: Apache-2.0
"""What a cross-validation concludes from the Dice of held-out cases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.crossval.estimate import advised_method, calibrate, evaluate_folds, format_result, prediction_interval
from scripts.errors import UserError

CONTROL = {"": {"organ": {"a": 0.80, "b": 0.70, "c": 0.60}}}
FOLDS = [["a"], ["b"], ["c"]]


def dice(**values: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"": {"organ": values}}


@pytest.mark.parametrize(
    ("count", "probability"), [(2, 1 / 3), (4, 0.6), (18, 17 / 19), (19, 0.9), (39, 0.9), (40, 37 / 41)]
)
def test_probability_of_the_interval(count, probability) -> None:
    assert prediction_interval(np.arange(count).tolist())[2] == pytest.approx(probability)


@pytest.mark.parametrize("count", [4, 19, 45])
def test_further_values_fall_into_the_interval_as_often_as_it_says(count) -> None:
    rng = np.random.default_rng(0)
    inside, probability = 0, 0.0
    for values in rng.exponential(size=(4000, count + 1)):
        low, high, probability = prediction_interval(values[:-1].tolist())
        inside += low <= values[-1] <= high
    assert inside / 4000 == pytest.approx(probability, abs=0.03)


def test_a_method_that_helps_is_chosen() -> None:
    result = evaluate_folds(CONTROL, dice(a=0.85, b=0.75, c=0.59), 80, FOLDS)
    assert result["use"] == "method"
    assert result["expected"]["mean"] == pytest.approx(0.73)
    assert (result["expected"]["low"], result["expected"]["high"]) == (0.59, 0.85)
    assert "3.0 points" in result["sentences"][1] and "2 of 3" in result["sentences"][1]
    assert "80 unlabelled" in result["sentences"][1]


@pytest.mark.parametrize(
    "method", [dice(a=0.79, b=0.69, c=0.59), dice(a=0.99, b=0.69, c=0.59), CONTROL], ids=["worse", "one case", "equal"]
)
def test_labels_alone_are_chosen_unless_the_mean_and_most_cases_are_better(method) -> None:
    result = evaluate_folds(CONTROL, method, 80, FOLDS)
    assert result["use"] == "control"
    assert result["expected"]["mean"] == pytest.approx(0.7)


def test_the_predicted_dice_is_calibrated_on_the_held_out_cases_of_the_chosen_arm() -> None:
    confidence = {"control": {"a": 0.9, "b": 0.9, "c": 0.9}, "method": {"a": 0.1, "b": 0.1, "c": 0.1}}
    result = evaluate_folds(CONTROL, dice(a=0.5, b=0.5, c=0.5), 80, FOLDS, confidence)
    calibration = result["calibration"]
    assert calibration["factor"] == pytest.approx(0.7 / 0.9, abs=1e-4)
    assert calibration["predicted"] == pytest.approx([0.7, 0.7], abs=1e-4)
    # The mean Dice of the two other cases predicts that of each.
    assert calibration["error"] == pytest.approx((0.15 + 0 + 0.15) / 3, abs=1e-4)
    assert "0.10" in result["sentences"][-2] and "labels alone" in result["sentences"][-1]


@pytest.mark.parametrize(
    ("of_cases", "factor", "error"), [({"a": (0.8, 0.4)}, 0.5, None), ({"a": (0.5, 0.9), "b": (0.0, 0.0)}, 1.8, None)]
)
def test_a_case_without_a_found_structure_does_not_calibrate(of_cases, factor, error) -> None:
    calibration = calibrate(of_cases)
    assert calibration is not None and (calibration["factor"], calibration["error"]) == (factor, error)


def test_nothing_found_calibrates_nothing() -> None:
    assert calibrate({"a": (0.0, 0.0)}) is None
    assert evaluate_folds(CONTROL, None, 0, FOLDS)["calibration"] is None


def test_without_a_method_there_is_only_an_expectation() -> None:
    result = evaluate_folds(CONTROL, None, 0, FOLDS)
    assert (result["use"], result["method"], result["comparison"]) == ("control", None, None)
    assert len(result["sentences"]) == 2 and "uses the labels alone" in result["sentences"][-1]
    assert format_result(result).splitlines()[-3].split() == ["mean", "0.7000"]


def test_the_table_has_a_row_for_each_case() -> None:
    lines = format_result(evaluate_folds(CONTROL, dice(a=0.85, b=0.75, c=0.59), 80, FOLDS)).splitlines()
    assert lines[1].split() == ["a", "0.8000", "0.8500", "+0.0500"]
    assert lines[5].split() == ["mean", "0.7000", "0.7300", "+0.0300"]


def test_options_of_evaluation_that_help_the_chosen_one_are_named() -> None:
    options = {"--largest_component true": {"organ": {"a": 0.86, "b": 0.76, "c": 0.60}}}
    worse = {"--largest_component true": {"organ": {"a": 0.7, "b": 0.7, "c": 0.7}}}
    result = evaluate_folds(CONTROL | worse, dice(a=0.85, b=0.75, c=0.59) | options, 80, FOLDS)
    assert result["options"] == ["--largest_component true"]
    assert "+1.0 points (3 better, 0 worse)" in result["sentences"][1]
    assert evaluate_folds(CONTROL | worse, None, 0, FOLDS)["options"] == []


def test_nothing_to_measure() -> None:
    with pytest.raises(UserError):
        evaluate_folds({"": {"organ": {}}}, None, 0, FOLDS)


def test_the_advice_is_read_from_the_result(tmp_path) -> None:
    folder = tmp_path / "crossval/mine"
    folder.mkdir(parents=True)
    result = evaluate_folds(CONTROL, dice(a=0.85, b=0.75, c=0.59), 80, FOLDS)
    result["files"] = {"control": ["supervised.yaml"], "method": ["mine.yaml"]}
    (folder / "crossval.json").write_text(json.dumps(result))
    assert advised_method([tmp_path / "crossval/mine"], "mine") == (["mine.yaml"], result["sentences"][1])
    assert advised_method([tmp_path / "other", tmp_path / "crossval/mine"], "mine")[0] == ["mine.yaml"]
    (folder / "crossval.json").write_text(json.dumps({**result, "use": "control"}))
    assert advised_method([tmp_path / "crossval/mine"], "mine")[0] == ["supervised.yaml"]


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_without_a_result_there_is_no_advice(tmp_path, content) -> None:
    (tmp_path / "crossval/mine").mkdir(parents=True)
    if content is not None:
        (tmp_path / "crossval/mine/crossval.json").write_text(content)
    with pytest.raises(UserError, match=r"crossval\.json"):
        advised_method([tmp_path / "crossval/mine"], "mine")
