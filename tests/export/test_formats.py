# SPDX-License-Identifier: Apache-2.0
"""Every exported file gives the same output as the network, also for sizes that were not used in the export."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import monai
import pytest
import torch
from monai.networks.nets import UNet

from scripts.cli.commands import main
from scripts.errors import UserError
from scripts.export.formats import BATCHES, EXPORTERS, SIDES, Comparison, compare
from scripts.export.settings import ExportSettings
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="requirements-export.txt is not installed",
)
# A small MONAI network, because exporting the V-Net takes half a minute per format.
SMALL = {
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@num_classes",
        "channels": [4, 8],
        "strides": [2],
    },
    "size_divisor": 2,
}


@pytest.fixture
def settings(tmp_path: Path) -> ExportSettings:
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=[4, 8], strides=[2])
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return ExportSettings(overrides=SMALL, ckpt_file=tmp_path / "model.pt")


@pytest.mark.parametrize("kind", ["ts", "pt2", pytest.param("onnx", marks=NEEDS_ONNX)])
def test_an_export_agrees_on_every_size_and_batch(kind, settings, tmp_path) -> None:
    path = tmp_path / f"model.{kind}"
    EXPORTERS[kind](settings, path)
    rows = compare(settings, [path])
    assert [row.shape for row in rows] == [(b, 1, *(2 * side for side in sides)) for sides in SIDES for b in BATCHES]
    assert all(row.passes for row in rows), rows
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["model.pt", path.name])


def test_parity_fails_for_other_weights(settings, tmp_path) -> None:
    """Without this check the test above could pass because nothing is compared."""
    EXPORTERS["ts"](settings, tmp_path / "model.ts")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    state["model.2.conv.bias"] += 0.01 * torch.arange(3)
    torch.save(state, tmp_path / "model.pt")
    assert not any(row.passes for row in compare(settings, [tmp_path / "model.ts"]))


def test_a_difference_of_nan_does_not_pass() -> None:
    assert not Comparison("model.ts", (1, 1, 2, 2, 2), float("nan"), 1.0).passes


def test_the_torchscript_of_a_vnet_contains_its_metadata_and_configuration(tmp_path) -> None:
    network = ResidualUNet(1, 4, widths=(4, 4, 4, 4), stem_stride=1, norm="instance")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    names = ["background", "liver", "tumour", "vessel"]
    settings = ExportSettings(
        overrides={"widths": [4, 4, 4, 4], "norm": "instance", "label_names": names, "spacing": [1.5, 1.5, 3.0]},
        ckpt_file=tmp_path / "model.pt",
    )
    EXPORTERS["ts"](settings, tmp_path / "model.ts")
    script, metadata, extra = monai.data.load_net_with_metadata(
        str(tmp_path / "model.ts"), more_extra_files=["inference.json"]
    )
    image = torch.randn(2, 1, 32, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(script(image), network.eval()(image), atol=1e-5, rtol=0)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == dict(zip("0123", names, strict=True))
    config = json.loads(extra["inference.json"])
    assert config["preprocessing"]["transforms"][3]["pixdim"] == [1.5, 1.5, 3.0]
    # MONAI Deploy looks for the configuration in a folder with the name of the file.
    assert "model/extra/inference.json" in zipfile.ZipFile(tmp_path / "model.ts").namelist()


def test_weights_of_another_network_are_refused_by_name(settings, tmp_path) -> None:
    torch.save(VNet(1, 2, base_filters=4).state_dict(), tmp_path / "model.pt")
    for kind in ("ts", "pt2"):
        with pytest.raises(UserError, match=r"model\.pt"):
            EXPORTERS[kind](settings, tmp_path / f"model.{kind}")
        assert not (tmp_path / f"model.{kind}").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ts", "--ckpt_file", "nowhere/model.pt"], "nowhere/model.pt"),
        (["ts", "--width", "4"], "--widths"),
        (["ts", "models"], "models"),
        (["ts", "--config_file", "nowhere.yaml"], "nowhere.yaml"),
        (["parity", "--ckpt_file", "nowhere/model.pt"], "nowhere/model.pt"),
        (["zip"], "--filepath"),
    ],
)
def test_errors_on_the_command_line_name_the_file_or_option(words, named, capsys) -> None:
    assert main(["export", *words]) == 2
    assert named in capsys.readouterr().err


def test_the_command_writes_next_to_the_weights_and_parity_finds_the_file(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    torch.save(
        ResidualUNet(1, 3, widths=(2, 2, 2, 2), stem_stride=1, norm="instance").state_dict(), tmp_path / "model.pt"
    )
    common = ["--ckpt_file", str(tmp_path / "model.pt"), "--widths", "[2,2,2,2]", "--norm", "instance"]
    assert main(["export", "ts", *common]) == 0
    assert main(["export", "parity", *common]) == 0
    assert "6 comparisons, 0 with" in capsys.readouterr().out
