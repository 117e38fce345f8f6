# SPDX-License-Identifier: Apache-2.0
"""The settings in the record of a run are those of its command line, as plain values."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle

from scripts.cli.settings import run_settings

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(monai.bundle.__file__).with_name("__main__.py"))


def settings(*options: str, file: Path | None = None) -> dict:
    files = [
        str(ROOT / "configs/train.yaml"),
        str(ROOT / "configs/methods/self_training.yaml"),
        *([file] if file else []),
    ]
    return run_settings([PROGRAM, "run", "training", "--config_file", str([str(each) for each in files]), *options])


def test_references_and_expressions_are_resolved_without_building_anything() -> None:
    record = settings("--max_steps", "50", "--restart=0.6", "--batch_labelled", "3")
    values = record["settings"]
    assert (values["max_steps"], values["restart"], values["batch_labelled"]) == (50, 0.6, 3)
    assert values["unlabelled_start"] == 0.6 and values["ramp_end"] == 0.6 + 0.1 * (1 - 0.6)
    assert values["num_classes"] == 4
    assert values["terms"]["pseudo_labels"]["weight"]["start"] == values["unlabelled_start"]
    assert values["network_def"]["out_channels"] == 4
    assert record["overrides"] == {"max_steps": 50, "restart": 0.6, "batch_labelled": 3}
    assert record["config_files"] == ["configs/train.yaml", "configs/methods/self_training.yaml"]
    assert "--restart=0.6" in record["command"]
    json.dumps(record)


def test_paths_of_this_machine_are_kept_apart() -> None:
    record = settings("--dataset_dir", "/home/somebody/scans", "--ckpt_dir", "/home/somebody/models")
    assert record["paths"]["dataset_dir"] == "/home/somebody/scans"
    shared = {key: value for key, value in record.items() if key not in ("paths", "command")}
    assert "somebody" not in json.dumps(shared)
    assert shared["settings"]["stored_labels"]["directory"] == "$@ckpt_dir + '/pseudo_labels'"


def test_a_nested_override_and_a_file_from_elsewhere_are_recorded(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("dataset_name: mine\nspacing: [1.0, 2.0, 3.0]\n")
    record = settings("--network_def::norm", "batch", file=tmp_path / "mine.yaml")
    assert record["config_files"][-1] == "mine.yaml"
    assert record["settings"]["spacing"] == [1.0, 2.0, 3.0]
    assert record["settings"]["network_def"]["norm"] == "batch"


def test_another_program_has_no_settings() -> None:
    assert run_settings(["pytest", "-q"]) is None
