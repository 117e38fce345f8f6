# SPDX-License-Identifier: Apache-2.0
"""model.pt in the commands: each reads it once, and it carries the preprocessing that it was trained behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.data.weights import preprocessing_record, record_of
from scripts.files import csv_rows
from scripts.inference.models import load_weights

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {"spacing": [3.0, 3.0, 4.0], "roi_size": [32, 32, 16]}
"""Settings of the run of `trained`."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that `torch.load` was called with."""
    names, original = [], torch.load

    def load(file, *args, **options):
        names.append(Path(getattr(file, "name", file)).name)
        return original(file, *args, **options)

    monkeypatch.setattr(torch, "load", load)
    return names


def infer(make_workflow, image: Path, **overrides) -> None:
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(image),
        widths=[4, 4, 4, 4],
        norm="instance",
        **{**TRAINED, **overrides},
    ).run()


def test_every_command_reads_model_pt_once(trained, make_workflow, tiny_demo, reads) -> None:
    image = tiny_demo / "images/demo_test_000.nii.gz"
    for command in (
        lambda: infer(make_workflow, image),
        lambda: make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating").run(),
        lambda: make_workflow("train.yaml", "labelling.yaml", run_id="pseudo_label").run(),
    ):
        reads.clear()
        command()
        assert reads == ["model.pt"]


def record(*files: str, **overrides) -> dict:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / file) for file in files])
    for key, value in overrides.items():
        parser[key] = value
    return preprocessing_record(parser.get_parsed_content("dataset_spec"))


def test_both_models_of_a_training_carry_its_record_and_inference_makes_the_same(trained) -> None:
    expected = record("inference.yaml", "datasets/demo.yaml", **TRAINED)
    for name in ("model.pt", "model_best.pt"):
        assert record_of(torch.load(trained.with_name(name), weights_only=True)) == expected
    assert record("train.yaml", "evaluate.yaml", **TRAINED) == expected


@pytest.mark.parametrize("command", ["inference", "evaluation", "pseudo-labels"])
def test_a_command_with_another_spacing_or_window_warns(command, trained, make_workflow, tiny_demo, capsys) -> None:
    def warnings(**overrides) -> list[str]:
        capsys.readouterr()
        if command == "inference":
            infer(make_workflow, tiny_demo / "images/demo_test_000.nii.gz", **overrides)
        elif command == "evaluation":
            make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", **overrides).run()
        else:
            make_workflow("train.yaml", "labelling.yaml", run_id="pseudo_label", **overrides).run()
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "WARNING inference" in line and "model.pt" in line]  # not of alarms

    assert not warnings()
    (warning,) = warnings(spacing=[4.0, 4.0, 4.0], roi_size=[16, 16, 32])
    assert "model.pt" in warning and "spacing [3.0, 3.0, 4.0]" in warning and "roi_size [32, 32, 16]" in warning


def test_what_is_deployed_is_evaluated_like_model_pt(trained, make_workflow, tmp_path) -> None:
    network = load_weights(trained, nn.Identity())  # the file records its network
    torch.jit.script(network).save(str(trained.with_name("model.ts")))

    def dice(**overrides) -> list[float]:
        make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", **overrides).run()
        return [float(row["dice"]) for row in csv_rows(tmp_path / "out/metrics.csv") if row["dice"]]

    expected = dice()
    assert dice(checkpoint="model.ts") == pytest.approx(expected, abs=1e-3)
    assert dice(checkpoint=["model.pt", "model.ts"]) == pytest.approx(expected, abs=1e-3)
    assert dice(checkpoint="model.ts", mirror_axes=[0, 1]) != pytest.approx(expected, abs=1e-3)
