# SPDX-License-Identifier: Apache-2.0
"""A trained model that is used behind another preprocessing than its own says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.data.preprocessing_record import describe_preprocessing
from scripts.inference.run import warn_of_other_preprocessing
from scripts.inference.weights_file import preprocessing_of

ROOT = Path(__file__).resolve().parents[2]


def preprocessing(**overrides):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs/inference.yaml"), str(ROOT / "configs/datasets/demo.yaml")])
    for key, value in overrides.items():
        parser[key] = value
    return parser.get_parsed_content("preprocessing")


@pytest.fixture
def trained(train, tmp_path) -> Path:
    """`model.pt` of a run at 3 x 3 x 4 mm."""
    train(max_steps=1)
    return tmp_path / "models/model.pt"


def test_training_leaves_its_preprocessing_in_the_model_and_only_another_one_warns(trained, caplog) -> None:
    with caplog.at_level(logging.WARNING, "preprocessing"):
        assert warn_of_other_preprocessing(trained, preprocessing(spacing=[3.0, 3.0, 4.0])) == []
        assert caplog.records == []
        found = warn_of_other_preprocessing(trained, preprocessing())
    assert found == ["Spacingd spacing_transform.pixdim [3.0, 3.0, 4.0] then, [2.0, 2.0, 2.5] now"]
    assert "model.pt was trained with another preprocessing" in caplog.text


def test_evaluation_has_the_preprocessing_of_training() -> None:
    """It first gives the image a second name, for pictures; a warning of that would be false."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs/train.yaml"), str(ROOT / "configs/evaluate.yaml")])
    trained, here = (
        describe_preprocessing(parser.get_parsed_content(f"{part}::preprocessing")) for part in ("validate", "evaluate")
    )
    assert here == trained != []


def test_the_best_model_carries_the_same_record(train, tmp_path) -> None:
    train(max_steps=2, val_interval=1)
    records = [
        preprocessing_of(torch.load(tmp_path / "models" / name, weights_only=True))
        for name in ("model.pt", "model_best.pt")
    ]
    assert records[0] == records[1] == describe_preprocessing(preprocessing(spacing=[3.0, 3.0, 4.0]))


def test_files_that_carry_no_record_pass(tmp_path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    assert warn_of_other_preprocessing(tmp_path / "model.pt", preprocessing()) == []
    assert warn_of_other_preprocessing(tmp_path / "model.onnx", preprocessing()) == []
