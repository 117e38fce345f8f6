# SPDX-License-Identifier: Apache-2.0
"""The comparison of two evaluations, with values worked out by hand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from scipy import stats

from scripts.cli.commands import main
from scripts.errors import UserError
from scripts.evaluation.comparison import compare_dice, compare_runs, conclusion, paired, read_dice
from scripts.evaluation.metrics import METRICS
from scripts.evaluation.report import write_report
from tests import forked_command

NAMES = {0: "background", 1: "liver", 2: "spleen"}


def run(*values: float) -> dict[str, float]:
    """One value for each of the cases c0, c1, ..."""
    return {f"c{case}": value for case, value in enumerate(values)}


def evaluation(folder: Path, liver: dict[str, float], spleen: dict[str, float] | None = None) -> Path:
    """A folder with the report of an evaluation; cases without spleen are absent there."""
    rows = []
    for case in liver:
        for label, dice in ((1, liver[case]), (2, (spleen or {}).get(case))):
            metrics = dict.fromkeys(METRICS, float("nan") if dice is None else dice)
            status = "absent" if dice is None else "found"
            rows.append({"case": case, "class": NAMES[label], "label": label, **metrics, "status": status})
    write_report(rows, NAMES, folder)
    return folder


def test_differences_are_those_of_the_second_run_from_the_first():
    result = paired(run(0.5, 0.5, 0.75, 0.25), run(0.75, 0.5, 0.5, 0.75))
    assert result["mean_difference"] == (0.25 + 0 - 0.25 + 0.5) / 4
    assert (result["mean_a"], result["mean_b"]) == (0.5, 0.625)
    assert (result["better"], result["worse"], result["equal"]) == (2, 1, 1)
    assert result["difference_interval"] is None, "four cases are too few"


def test_p_is_that_of_the_signed_rank_test():
    """Differences 1, 2, -3, 4, 5, 6, 7 in hundredths: the negative ranks sum to 3.

    Of the 2^7 assignments of signs, those with a rank sum of at most 3 are {}, {1}, {2}, {3} and {1, 2}, on each side.
    """
    differences = [0.01, 0.02, -0.03, 0.04, 0.05, 0.06, 0.07]
    result = paired(run(*[0.0] * 7), run(*differences))
    assert result["p_value"] == pytest.approx(2 * 5 / 2**7)
    assert result["p_value"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    low, high = result["difference_interval"]
    assert low < result["mean_difference"] < high
    # Equal cases are counted and not tested.
    with_equal = paired(run(*[0.0] * 9), run(*differences, 0.0, 0.0))
    assert (with_equal["p_value"], with_equal["equal"]) == (result["p_value"], 2)


def test_unmatched_cases_are_named_and_not_compared():
    result = paired({"x": 0.5, "y": 0.1, "w": 0.0}, {"z": 0.9, "x": 0.75})
    assert (result["only_in_a"], result["only_in_b"], result["num_cases"]) == (["w", "y"], ["z"], 1)
    assert result["mean_difference"] == 0.25


def test_mean_of_a_case_is_over_the_classes_that_count_there():
    a = {"liver": {"x": 0.75, "y": 0.5}, "spleen": {"y": 1.0}}
    b = {"liver": {"x": 0.75, "y": 0.5}, "spleen": {"x": 0.0, "y": 0.5}}  # in x, a spleen that is not there
    result = compare_dice(a, b)
    assert result["mean_a"] == 0.75 and result["mean_b"] == (0.375 + 0.5) / 2
    assert (result["better"], result["worse"]) == (0, 2)
    assert result["per_class"]["spleen"]["num_cases"] == 1
    assert result["per_class"]["spleen"]["only_in_b"] == ["x"]


@pytest.mark.parametrize(
    ("b", "said"),
    [
        ([0.5] * 6, "same Dice"),
        ([0.6, 0.7, 0.8, 0.9, 1.0], "0.0625"),
        ([0.6, 0.7, 0.8, 0.9, 1.0, 0.95], "p = 0.031): B is better in 6 of 6"),
        ([0.6, 0.3, 0.8, 0.1, 1.0, 0.25], "no proof that they are equally good"),
    ],
)
def test_conclusion_says_what_the_cases_can_show(b, said):
    assert said in conclusion(paired(run(*[0.5] * len(b)), run(*b)))


def test_a_run_is_a_folder_or_its_csv_and_absent_structures_are_left_out(tmp_path):
    folder = evaluation(tmp_path / "a", run(0.5, 0.25), {"c1": 0.75})
    expected = {"liver": {"c0": 0.5, "c1": 0.25}, "spleen": {"c1": 0.75}}
    assert read_dice(folder) == read_dice(folder / "metrics.csv") == expected


def test_front_door_prints_the_line_the_table_and_the_unmatched_and_writes_a_file(tmp_path, capfd):
    a = evaluation(tmp_path / "it's a", run(*[0.5] * 8))
    b = evaluation(tmp_path / "b", run(*[0.75] * 7))
    assert main(["compare", str(a), str(b), "--output_dir", str(tmp_path / "new")]) == 0
    line, *table = capfd.readouterr().out.strip().splitlines()
    assert line.startswith("python -m monai.bundle run compare --config_file ") and "--comparison_dir" in line
    liver = next(text.split() for text in table if text.startswith("liver"))
    assert liver == ["liver", "7", *["0.5000", "0.7500", "0.2500", "0.250", "to", "0.250", "7", "0", "0", "0.0156"]]
    assert any("Only in A" in text and "c7" in text for text in table)
    result = json.loads((tmp_path / "new/compare.json").read_text())
    assert (result["b"], result["only_in_a"], result["per_class"]["liver"]["better"]) == (str(b), ["c7"], 7)
    assert result["conclusion"] in table


def test_the_printed_line_does_the_same_from_another_folder(tmp_path, monkeypatch, capfd):
    evaluation(tmp_path / "a", run(0.5, 0.75)), evaluation(tmp_path / "b", run(0.5, 0.5))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b"]) == 0
    line, *table = capfd.readouterr().out.splitlines()
    assert table[0] == "A: a"
    python, option, *words = shlex.split(line)
    assert (python, option) == ("python", "-m")
    pasted = forked_command.run(words, tmp_path, prepare=forked_command.leave_bundle)
    assert pasted.code == 0, pasted.errors
    assert pasted.output.splitlines()[-len(table) :] == table


def test_without_a_folder_nothing_is_written(tmp_path, capsys):
    runs = [evaluation(tmp_path / name, run(0.5, 0.75)) for name in "ab"]
    before = sorted(tmp_path.rglob("*"))
    compare_runs(runs)
    assert sorted(tmp_path.rglob("*")) == before and "same Dice" in capsys.readouterr().out


def test_bad_input_is_a_user_error_that_names_the_file(tmp_path):
    good = evaluation(tmp_path / "good", run(0.5, 0.5))
    files = {name: tmp_path / name for name in ("picture.png", "other.csv", "text.csv", "empty.csv")}
    files["picture.png"].write_bytes(b"\x89PNG\xff\x00")
    files["other.csv"].write_text("name,value\na,1\n")
    files["text.csv"].write_text("case,class,dice,status\na,liver,good,found\n")
    files["empty.csv"].write_text("case,class,dice,status\n")
    for file in [*files.values(), tmp_path / "nowhere"]:
        with pytest.raises(UserError, match=file.name):
            compare_runs([good, file])
    with pytest.raises(UserError, match="--runs"):
        compare_runs(None)


def test_runs_without_a_common_case_or_of_other_classes_are_refused(tmp_path, capfd):
    a, b = evaluation(tmp_path / "a", {"x": 0.5}), evaluation(tmp_path / "b", {"y": 0.5})
    assert main(["compare", str(a), str(b)]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("Error: The runs have no case in common")
    with pytest.raises(UserError, match="spleen"):
        compare_dice({"liver": {"x": 0.5}}, {"spleen": {"x": 0.5}})
