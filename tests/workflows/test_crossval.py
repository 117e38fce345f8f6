# SPDX-License-Identifier: Apache-2.0
"""A real cross-validation of the demo, with a few steps, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, TINY


def test_a_cross_validation_trains_both_arms_of_each_fold(tiny_demo: Path, tmp_path: Path) -> None:
    keys = ("roi_size", "batch_labelled", "base_filters", "spacing", "precision", "device", "num_workers")
    options = [word for key in keys for word in (f"--{key}", str(TINY[key]))]
    files = "['configs/train.yaml','configs/methods/self_training.yaml','configs/crossval.yaml']"
    command = [sys.executable, "-m", "monai.bundle", "run", "crossval", "--config_file", files, *options]
    command += ["--dataset_dir", str(tiny_demo), "--output_dir", str(tmp_path), "--max_steps", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "crossval/demo"
    result = json.loads((folder / "crossval.json").read_text())
    names = ["demo_training_000", "demo_training_001"]
    assert list(result["control"]) == list(result["method"]) == names
    assert all(sentence in done.stdout for sentence in result["sentences"])
    for fold, arm in ((1, "control"), (1, "method"), (2, "control"), (2, "method")):
        log = (folder / f"fold_{fold}/{arm}/log.txt").read_text()
        assert "1 labelled and 4 unlabelled cases for training, 0 for validation, 1 for testing." in log
        assert ("pseudo_labels" in log) == (arm == "method")
    assert not list(folder.rglob("model*.pt"))
