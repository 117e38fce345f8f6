# SPDX-License-Identifier: Apache-2.0
"""Every exported file gives the same output as the network, also for sizes that were not used in the export."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from scripts.cli.commands import main
from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.export.formats import (
    BATCHES,
    EXPORTERS,
    SIDES,
    Comparison,
    compare,
    export_torchscript,
    foreign_names,
    self_contained,
)
from scripts.export.settings import ExportSettings
from scripts.inference.models import load_model
from scripts.inference.segmenter import MirroredNetwork
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet
from tests import forked_command

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


@pytest.fixture
def trained_for(tmp_path: Path) -> Path:
    """Weights that record the preprocessing of configs/inference.yaml."""
    network = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=[4, 8], strides=[2])
    save_weights(network, tmp_path / "trained.pt", ExportSettings(overrides=SMALL).value("dataset_spec"))
    return tmp_path / "trained.pt"


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


@pytest.mark.parametrize("overrides", [{"spacing": [3, 3, 3]}, {"label_names": ["background", "a", "b", "c"]}])
def test_weights_with_another_preprocessing_are_refused(overrides, trained_for, tmp_path) -> None:
    network_def = SMALL["network_def"] | {"out_channels": 3}
    with pytest.raises(UserError, match=next(iter(overrides))):
        ExportSettings(overrides=SMALL | overrides | {"network_def": network_def}, ckpt_file=trained_for).network()


@pytest.mark.parametrize("kind", ["ts", "pt2"])
def test_an_exported_file_warns_of_another_preprocessing(kind, trained_for, tmp_path, caplog) -> None:
    settings, path = ExportSettings(overrides=SMALL, ckpt_file=trained_for), tmp_path / f"model.{kind}"
    EXPORTERS[kind](settings, path)
    dataset = settings.value("dataset_spec")
    caplog.clear()
    MirroredNetwork(load_model(path, settings.network(), "cpu", dataset), (), "cpu").train().eval()  # as MONAI does
    assert "model." not in caplog.text
    other = replace(dataset, spacing=[3, 3, 3], label_names=["background", "b", "a"])
    load_model(path, settings.network(), "cpu", other)
    assert f"model.{kind}" in caplog.text and "spacing" in caplog.text and "label_names" in caplog.text


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


ROOT = Path(__file__).resolve().parents[2]
DATASETS = sorted(path.name for path in (ROOT / "configs/datasets").glob("*.yaml") if path.name != "template.yaml")


def settings_of(dataset: str, **overrides) -> ExportSettings:
    files = [ROOT / "configs/inference.yaml", ROOT / "configs/datasets" / dataset]
    return ExportSettings(files, overrides)


@pytest.mark.parametrize("dataset", DATASETS)
def test_preprocessing_equals_that_of_inference_except_for_the_reader(dataset) -> None:
    settings = settings_of(dataset)
    load, *others = self_contained(settings)["preprocessing"]["transforms"]
    expected = [settings.plain(f"preprocessing::transforms::{n}") for n in range(1, 5)]
    assert load == {"_target_": "LoadImaged", "keys": "image"}
    assert others == [*expected, {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"}]


@pytest.mark.parametrize("dataset", DATASETS)
def test_it_has_no_class_of_scripts_and_no_undefined_reference(dataset) -> None:
    config = self_contained(settings_of(dataset))
    text = json.dumps(config)
    assert "scripts" not in text and "ignite" not in text
    names = set(config)
    assert set(re.findall(r"@(\w+)", text)) <= names


def test_foreign_classes_are_found_at_any_depth() -> None:
    config = {
        "a": {"_target_": "LoadImaged", "reader": {"_target_": "scripts.images.monai.VolumeReader"}},
        "b": [{"_target_": "monai.inferers.SimpleInferer"}, "$ignite.handlers.ProgressBar()", "$torch.float32"],
        "c": {"_target_": "torch.nn.Identity"},
    }
    assert sorted(foreign_names(config)) == ["ignite.handlers.ProgressBar", "scripts.images.monai.VolumeReader"]


def test_a_custom_intensity_transform_is_refused_by_name() -> None:
    own = {"_target_": "scripts.data.transforms.Windowd", "keys": "image"}
    with pytest.raises(UserError, match=r"scripts\.data\.transforms\.Windowd"):
        self_contained(ExportSettings(overrides={"intensity": own}))


def test_without_the_bundle_it_gives_the_same_labels(make_workflow, tmp_path) -> None:
    torch.manual_seed(0)
    images = tmp_path / "images"
    images.mkdir()
    image = np.random.default_rng(0).normal(size=(23, 36, 19)).astype(np.float32)
    affine = np.array([[0, -1.7, 0, 31], [-1.1, 0, 0, 12], [0, 0, 2.6, -40], [0, 0, 0, 1.0]])  # axes swapped, flipped
    nib.save(nib.Nifti1Image(image, affine), images / "case.nii.gz")
    models = tmp_path / "alone/models"
    models.mkdir(parents=True)
    torch.save(
        ResidualUNet(1, 4, widths=(4, 4, 4, 4), stem_stride=1, norm="instance").state_dict(), models / "model.pt"
    )
    overrides = {
        "widths": [4, 4, 4, 4],
        "norm": "instance",
        "label_values": [0, 7, 300, 1],
        "device": "cpu",
        "roi_size": [32, 32, 16],
    }
    files = [ROOT / "configs/inference.yaml", ROOT / "configs/datasets/demo.yaml"]
    export_torchscript(ExportSettings(files, overrides, models / "model.pt"), models / "model.ts")
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(images),
        ckpt_dir=str(models),
        output_dir=str(tmp_path / "ours"),
        **overrides,
    ).run()
    (models / "model.pt").unlink()
    alone = models.parent
    with zipfile.ZipFile(models / "model.ts") as archive:
        (alone / "inference.json").write_bytes(archive.read("model/extra/inference.json"))
    forked_command.load_libraries()
    words = ["monai.bundle", "run", "--config_file", "inference.json", "--dataset_dir", str(images)]
    done = forked_command.run([*words, "--output_dir", "out"], alone, prepare=forked_command.leave_bundle)
    assert done.code == 0, done.errors
    ours, theirs = (nib.load(path / "case_seg.nii.gz") for path in (tmp_path / "ours", alone / "out"))
    assert len(np.unique(np.asarray(ours.dataobj))) > 1, "a volume of one label would not test anything"
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    assert ours.get_data_dtype() == theirs.get_data_dtype() == np.int16
