# SPDX-License-Identifier: Apache-2.0
"""Which cases get a label, in which order, and that nothing is trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.benchmarks import ranked_labelling
from scripts.benchmarks.rows import read_rows
from scripts.errors import UserError

TRAINING = [{"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in range(6)]


def test_added_cases_stand_behind_the_labelled_ones_with_their_own_labels() -> None:
    listed = ranked_labelling.in_front(TRAINING, 2, ["5.nii.gz", "3.nii.gz"])
    assert [case["image"][0] for case in listed] == ["0", "1", "5", "3", "2", "4"]
    assert all(case["label"] == case["image"].replace(".", "_label.", 1) for case in listed)


@pytest.mark.parametrize("image", ["1.nii.gz", "9.nii.gz"])
def test_a_case_that_is_labelled_already_or_unknown_is_refused(image) -> None:
    with pytest.raises(UserError, match=image):
        ranked_labelling.in_front(TRAINING, 2, [image])


def test_a_campaign_trains_each_choice_once_and_compares_them(tiny_demo, tmp_path, monkeypatch, capsys) -> None:
    runs = []

    def run_once(dataset: str, method: str, seed: int, words: list[str], folder: Path) -> dict[str, object]:
        listed = json.loads(Path(words[words.index("--datalist") + 1]).read_text())["training"]
        count = int(words[words.index("--labelled_cases") + 1])
        runs.append([Path(case["image"]).name for case in listed[:count]])
        measured = dict.fromkeys(ranked_labelling.MEASURED, 1) | {"mean_dice": 0.5 + 0.01 * len(runs)}
        return {"dataset": dataset, "method": method, "seed": seed, "overrides": "", **measured}

    def ranking(campaign: ranked_labelling.Campaign) -> list[str]:
        return [case["image"] for case in reversed(campaign.entries()["training"][campaign.labelled :])]

    monkeypatch.setattr(ranked_labelling, "run_once", run_once)
    monkeypatch.setattr(ranked_labelling.Campaign, "ranking", ranking)
    words = ["--dataset", "demo", "--dataset_dir", str(tiny_demo), "--labelled", "2", "--add", "2", "--draws", "2"]
    words += ["--folder", str(tmp_path / "work"), "--results", str(tmp_path / "rows.csv")]
    ranked_labelling.main(words)
    names = [Path(case["image"]).name for case in json.loads((tiny_demo / "dataset.json").read_text())["training"]]
    assert runs[0] == names[:2]
    assert runs[1] == [*names[:2], names[5], names[4]]
    assert all(len(set(run)) == 4 and run[:2] == names[:2] for run in runs[2:])
    assert runs[2] != runs[3]
    assert [row["choice"] for row in read_rows(tmp_path / "rows.csv")] == ["none", "ranked", "random 0", "random 1"]
    assert "without 0.5100; ranked 0.5200 is not above the mean 0.5350" in capsys.readouterr().out
    ranked_labelling.main(words)
    assert len(runs) == 4
