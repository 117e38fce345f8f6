# SPDX-License-Identifier: Apache-2.0
"""The configuration inside model.ts uses only monai and torch, and gives the labels of configs/inference.yaml."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import UserError
from scripts.export.formats import export_torchscript, foreign_names, self_contained
from scripts.export.settings import ExportSettings
from scripts.networks.residual_unet import ResidualUNet
from tests import forked_command

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
