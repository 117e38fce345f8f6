# SPDX-License-Identifier: Apache-2.0
"""The comparison with nnU-Net gives it the labelled cases only, the time that was asked for, and a row of the table."""

from __future__ import annotations

import csv
import json
import sys
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace

import pytest

from scripts.errors import UserError
from scripts.experiments import nnunet
from tests.experiments.test_accuracy import SUMMARY


class Trainer:
    """What of nnU-Net's trainer is used. Its network counts the iterations."""

    def __init__(self, plans: dict, configuration: str, fold: str, content: dict, device: object) -> None:
        assert (configuration, fold, content["labels"]["vessel"]) == ("3d_fullres", "all", 3)
        self.network = SimpleNamespace(iterations=0, state_dict=dict)
        self.plans_manager, self.configuration_manager, self.dataset_json = plans, None, content
        self.inference_allowed_mirroring_axes = (0, 1, 2)

    def on_train_epoch_start(self) -> None:
        """Do nothing."""

    def on_train_epoch_end(self, outputs: list) -> None:
        """Do nothing."""

    def run_training(self) -> None:
        """Go through all epochs."""
        for _ in range(self.num_epochs):
            self.on_train_epoch_start()
            self.network.iterations += self.num_iterations_per_epoch
            self.on_train_epoch_end([])

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The network must give one output for prediction."""
        assert not enabled


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Put stand-ins in the place of nnU-Net, of the clock and of the evaluation; collect what they are given."""
    seen: dict = {}

    def plan(numbers: list[int]) -> str:
        raw = Path(nnunet.os.environ["nnUNet_raw"]) / "Dataset001_cases"
        target = Path(nnunet.os.environ["nnUNet_preprocessed"]) / raw.name
        target.mkdir(parents=True)
        (target / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
        planned = {"3d_fullres": {"batch_size": 2, "patch_size": [8, 8, 8]}}
        (target / "plans.json").write_text(json.dumps({"configurations": planned}))
        seen["training"] = sorted(path.name for path in (raw / "imagesTr").iterdir())
        seen["labels"] = sorted(path.name for path in (raw / "labelsTr").iterdir())
        return "plans"

    class Predictor:
        def __init__(self, **_: object) -> None:
            """Take any options."""

        def manual_initialization(self, network: SimpleNamespace, *_: object) -> None:
            """Remember how long the network was trained."""
            seen["iterations"] = network.iterations

        def predict_from_files(self, images: str, output: str, **_: object) -> None:
            """Remember the images."""
            seen["tested"] = sorted(path.name for path in Path(images).iterdir())
            seen["predictions"] = output

    planning = SimpleNamespace(
        extract_fingerprints=lambda *_, **__: None, plan_experiments=plan, preprocess=lambda *_: None
    )
    parts = {
        "nnunetv2.experiment_planning": {"plan_and_preprocess_api": planning},
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": {"nnUNetTrainer": Trainer},
        "nnunetv2.inference.predict_from_raw_data": {"nnUNetPredictor": Predictor},
    }
    for name, content in parts.items():
        words = name.split(".")
        for length in range(1, len(words) + 1):
            module = ".".join(words[:length])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, ModuleType(module))
        vars(sys.modules[name]).update(content)

    def evaluate(command: list[str], **_: object) -> CompletedProcess:
        words = dict(zip(command[5::2], command[6::2], strict=True))
        seen["evaluated"] = words
        out = Path(words["--output_dir"])
        out.mkdir()
        (out / "summary.json").write_text(json.dumps(SUMMARY))
        (out / "metrics.csv").write_text("case,class,label,dice,status\na,organ,1,0.5,found\n")
        return CompletedProcess(command, 0)

    for kind in ("raw", "preprocessed", "results"):  # restored afterwards
        monkeypatch.setenv(f"nnUNet_{kind}", "")
    monkeypatch.setenv("nnUNet_n_proc_DA", "")
    monkeypatch.setenv("nnUNet_compile", "")
    ticks = count()
    monkeypatch.setattr(nnunet.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(nnunet, "run_process", evaluate)
    return seen


def test_nnunet_trains_on_the_labelled_cases_for_the_given_time(seen, tiny_demo, tmp_path) -> None:
    results = tmp_path / "a.csv"
    words = ["--dataset_dir", str(tiny_demo), "--labelled", "2", "--minutes", "1", "--results", str(results)]
    nnunet.main([*words, "--seed", "3"])

    assert seen["training"] == ["demo_training_000_0000.nii.gz", "demo_training_001_0000.nii.gz"]
    assert seen["labels"] == ["demo_training_000.nii.gz", "demo_training_001.nii.gz"]
    assert seen["tested"] == [f"demo_test_{number:03d}_0000.nii.gz" for number in range(len(seen["tested"]))]
    # By the clock above an epoch takes a second, that of the trial 2 iterations. 120 iterations fit into a minute.
    assert seen["iterations"] == 120
    assert seen["evaluated"]["--predictions"] == seen["predictions"]
    assert seen["evaluated"]["--labelled_cases"] == "2"
    with results.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["method"], row["labelled"], row["seed"]) == ("nnU-Net, 120 iterations", "2", "3")
    assert (row["mean_dice"], row["dice_by_case"]) == ("0.5", "0.5000")


def test_nnunet_must_be_installed(tiny_demo, tmp_path, monkeypatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    words = ["--dataset_dir", str(tiny_demo), "--labelled", "2", "--minutes", "1", "--results", str(tmp_path / "a.csv")]
    with pytest.raises(UserError, match="nnunetv2"):
        nnunet.main(words)
    assert not (tmp_path / "a.csv").exists()
