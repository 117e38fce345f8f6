# SPDX-License-Identifier: Apache-2.0
"""The bundle as MONAI's own commands and a stranger's shell see it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import monai
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

from scripts.networks.residual_unet import ResidualUNet
from tests import forked_command

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a clone would hold: configs and scripts alone are needed to run."""
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "clone"


def test_five_steps_from_another_folder_leave_nothing_but_in_the_named_ones(clone, tiny_demo, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = files_below(clone)
    forked_command.load_libraries()
    words = [
        *("monai.bundle", "run", "training"),
        *("--config_file", str(clone / "configs/train.yaml"), "--bundle_root", str(clone)),
        *("--dataset_dir", str(tiny_demo), "--roi_size", "[32,32,16]", "--widths", "[4,4,4,4]", "--norm", "instance"),
        *("--spacing", "[3,3,4]", "--precision", "fp32"),
        *("--device", "cpu", "--max_steps", "5", "--val_interval", "3"),
        *("--output_dir", str(tmp_path / "X"), "--ckpt_dir", str(tmp_path / "Y")),
    ]
    done = forked_command.run(words, elsewhere, prepare=forked_command.leave_bundle)
    assert done.code == 0, done.errors
    assert files_below(clone) == before
    assert files_below(elsewhere) == {"stdout.txt", "stderr.txt"}, "besides the streams of the process"
    models = {"model.pt", "model_best.pt", "model_labels_only.pt", "checkpoint_00000005.pt", "run.json"}
    assert {name for name in files_below(tmp_path / "Y") if not name.startswith("pseudo_labels/")} == models
    assert any(name.startswith("events.out") for name in files_below(tmp_path / "X"))


@pytest.mark.parametrize("file", ["train.yaml", "inference.yaml"])
def test_a_start_from_another_folder_without_bundle_root_names_the_option(file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "scripts/errors.py").is_file()])
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow(str(CONFIGS / file), workflow_type="train", logging_file=False)
    with pytest.raises(SystemExit, match="--bundle_root"):
        workflow.initialize()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = ResidualUNet(1, 3, widths=(4, 4, 4, 4), stem_stride=1, norm="instance")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def in_bundle_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_exported_torchscript_gives_the_networks_output(model, in_bundle_root, tmp_path) -> None:
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(model),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        widths=[4, 4, 4, 4],
        norm="instance",
    )
    network = ResidualUNet(1, 3, widths=(4, 4, 4, 4), stem_stride=1, norm="instance")
    network.load_state_dict(torch.load(model, weights_only=True))
    network.eval()
    script, metadata, _ = monai.data.load_net_with_metadata(str(tmp_path / "model.ts"))
    for shape in [(1, 1, 32, 48, 32), (2, 1, 64, 32, 48)]:
        image = torch.randn(shape)
        with torch.no_grad():
            np.testing.assert_allclose(script(image), network(image), atol=1e-5)
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3


def test_input_and_output_are_as_metadata_says(in_bundle_root) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        device="cpu",
    )


def test_metadata_follows_the_schema(tmp_path) -> None:
    schema = shutil.copy(SCHEMA, tmp_path)
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_metadata_names_the_pinned_versions() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert metadata["monai_version"] == pinned["monai"]
    assert metadata["pytorch_version"] == pinned["torch"]
    assert metadata["numpy_version"] == pinned["numpy"]
    for package, version in metadata["required_packages_version"].items():
        assert pinned[package] == version, package
