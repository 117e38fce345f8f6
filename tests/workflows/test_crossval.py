# SPDX-License-Identifier: Apache-2.0
"""A real cross-validation of the demo, with a few steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from scripts.crossval import runs
from tests import forked_command
from tests.conftest import ROOT, TINY


def test_a_cross_validation_trains_both_arms_of_each_fold(
    make_workflow, tiny_demo: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    forked_command.load_libraries()

    def run(command: list[str], stdout, **_) -> subprocess.CompletedProcess:
        done = forked_command.run(command[2:], tmp_path / "here")
        stdout.write(done.output + done.errors)
        return subprocess.CompletedProcess(command, done.code)

    monkeypatch.setattr(runs, "run_process", run)
    keys = ("roi_size", "batch_labelled", "widths", "norm", "spacing", "precision", "device", "num_workers")
    words = [word for key in keys for word in (f"--{key}", str(TINY[key]))]
    words += ["--bundle_root", str(ROOT), "--dataset_dir", str(tiny_demo)]
    words += ["--max_steps", "2", "--largest_component", "true"]
    files = ["train.yaml", "methods/self_training.yaml", "crossval.yaml"]
    argv = ["monai", "run", "crossval", "--config_file", str([f"{ROOT}/configs/{file}" for file in files]), *words]
    make_workflow(*files, run_id="crossval", **{"crossval::1::argv": argv}).run()
    folder = tmp_path / "out/crossval/demo"
    result = json.loads((folder / "crossval.json").read_text())
    assert list(result["control"]) == list(result["method"]) == ["demo_training_000", "demo_training_001"]
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in result["sentences"])
    for fold, arm in ((1, "control"), (1, "method"), (2, "control"), (2, "method")):
        log = (folder / f"fold_{fold}/{arm}/log.txt").read_text()
        assert "1 labelled and 4 unlabelled cases for training, 0 for validation, 1 for testing." in log
        assert ("pseudo_labels" in log) == (arm == "method")
    assert not list(folder.rglob("model*.pt"))
