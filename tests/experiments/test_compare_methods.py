# SPDX-License-Identifier: Apache-2.0
"""An interrupted comparison continues and repeats no run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from scripts.experiments import compare_methods


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run; instead of running them, a summary is written."""
    called: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        called.append(command)
        out = Path(command[command.index("--output_dir") + 1])
        out.mkdir(exist_ok=True)
        summary = {"mean_dice": 0.5, "mean_hd95_voxel": 2.0, "mean_asd_voxel": 1.0, "missed": 0}
        (out / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(compare_methods.subprocess, "run", run)
    return called


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_method_and_seed_is_trained_and_evaluated_once(commands, tmp_path) -> None:
    results = tmp_path / "a.csv"
    arguments = ["--methods", "default", "supervised", "--seeds", "0", "1", "--results", str(results)]
    compare_methods.main(arguments)
    assert len(commands) == 8
    assert [(row["method"], row["seed"]) for row in rows(results)] == [
        *(("default", "0"), ("supervised", "0"), ("default", "1"), ("supervised", "1")),
    ]
    compare_methods.main(arguments)
    assert len(commands) == 8
    compare_methods.main([*arguments, "--", "--labelled_cases", "4"])
    assert len(commands) == 16


def test_config_files_come_in_the_order_dataset_method_evaluation(commands, tmp_path) -> None:
    compare_methods.main(["--methods", "prototype", "--seeds", "3", "--results", str(tmp_path / "a.csv")])
    files = [command[command.index("--config_file") + 1] for command in commands]
    assert files[0] == "['configs/train.yaml', 'configs/datasets/demo.yaml', 'configs/methods/prototype.yaml']"
    assert files[1] == files[0][:-1] + ", 'configs/evaluate.yaml']"
    assert all(command[command.index("--seed") + 1] == "3" for command in commands)


def test_results_show_no_folder_of_this_machine(commands, tmp_path) -> None:
    results = tmp_path / "a.csv"
    compare_methods.main(
        ["--methods", "default", "--seeds", "0", "--results", str(results), "--", "--dataset_dir", "/some/where/scans"]
    )
    assert rows(results)[0]["overrides"] == "--dataset_dir scans"
    assert "/some/where/scans" in commands[0]
