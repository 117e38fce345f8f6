# SPDX-License-Identifier: Apache-2.0
"""JSON twins are in step with their YAML files, and what reads only JSON finds the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.export.package import TWINS, json_text, write_json_configs
from scripts.networks.vnet import VNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_in_step(name) -> None:
    committed = (CONFIGS / f"{name}.json").read_text(encoding="utf-8")
    assert committed == json_text(CONFIGS / f"{name}.yaml"), "run `python -m scripts export json`"


def test_a_twin_says_what_the_yaml_says(tmp_path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("*.json"))
    for path in write_json_configs(tmp_path / "configs"):
        yaml = ConfigParser.load_config_file(str(path.with_suffix(".yaml")))
        assert json.loads(path.read_text(encoding="utf-8")) == yaml


def test_monai_loads_the_trained_network_by_the_bundles_name(shipped_weights, tmp_path, monkeypatch) -> None:
    bundle = tmp_path / "demo_bundle"
    shutil.copytree(CONFIGS, bundle / "configs")
    (bundle / "models").mkdir()
    shutil.copy(shipped_weights, bundle / "models")
    network = VNet(1, 3, base_filters=8, norm="instance")
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    monkeypatch.syspath_prepend(str(CONFIGS.parent))
    loaded = monai.bundle.load(
        name="demo_bundle", bundle_dir=str(tmp_path), source="github", workflow_type="inference", device="cpu"
    )
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), network.eval()(image))
