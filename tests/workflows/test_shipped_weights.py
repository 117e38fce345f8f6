# SPDX-License-Identifier: Apache-2.0
"""models/model.pt, configs/inference.yaml and configs/metadata.json are of one model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.data.weights import preprocessing_record, record_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.yaml"))
    return parser


@pytest.fixture
def metadata() -> dict:
    return json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))


def test_the_weights_load_strictly_and_are_small_enough_for_a_clone(shipped_weights, config) -> None:
    state = torch.load(shipped_weights, weights_only=True)
    config.get_parsed_content("network_def").load_state_dict(state, strict=True)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert shipped_weights.stat().st_size < 25 * 2**20


def test_the_weights_were_trained_behind_the_preprocessing_of_inference(shipped_weights, config) -> None:
    record = record_of(torch.load(shipped_weights, weights_only=True))
    assert record == preprocessing_record(config.get_parsed_content("dataset_spec"))


def test_metadata_names_the_channels_and_the_window_of_inference(config, metadata) -> None:
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    names = config["label_names"]
    assert pred["channel_def"] == {str(channel): name for channel, name in enumerate(names)}
    assert (image["num_channels"], pred["num_channels"]) == (config["in_channels"], len(names))
    assert image["spatial_shape"] == pred["spatial_shape"] == config.get_parsed_content("window_size")
    for key in ("label_classes", "pred_classes"):
        assert all(f"{value} {name}" in metadata[key] for value, name in enumerate(names)), key


def test_the_metrics_are_those_of_these_weights(shipped_weights, config, metadata) -> None:
    measured = metadata["eval_metrics"]
    digest = hashlib.sha256(shipped_weights.read_bytes()).hexdigest()
    assert measured["weights_sha256"] == digest, "evaluate the new weights"
    assert list(measured["per_class"]) == config["label_names"][1:]
    means = [row["mean_dice"] for row in measured["per_class"].values()]
    assert measured["mean_dice"] == pytest.approx(sum(means) / len(means), abs=1e-4)


def test_the_pages_of_the_weights_say_what_the_metadata_says(metadata) -> None:
    page = (ROOT / "models/README.md").read_text(encoding="utf-8")
    rows = {"mean": metadata["eval_metrics"], **metadata["eval_metrics"]["per_class"]}
    for name, row in rows.items():
        assert f"| {name} | {row['mean_dice']:.4f} | {row['mean_jaccard']:.4f} |" in page
    assert "CC-BY-SA 4.0" in page and "CC-BY-SA 4.0" in (ROOT / "docs/data_license.txt").read_text(encoding="utf-8")
