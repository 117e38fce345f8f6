# SPDX-License-Identifier: Apache-2.0
"""What readers of bundles do with this one, by their own contract (docs/readers.md has the runs of the real ones)."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from monai.transforms import SaveImaged

from scripts.cli.commands import main
from scripts.networks.residual_unet import ResidualUNet
from tests.conftest import TINY
from tests.volume_files import affine, save, volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The unpacked zip, without data."""
    return unpacked(tmp_path)


def unpacked(folder: Path, *words: str) -> Path:
    assert main(["export", "zip", "--filepath", str(folder / "B.zip"), *words]) == 0
    with zipfile.ZipFile(folder / "B.zip") as archive:
        archive.extractall(folder)
    return folder / "B"


@pytest.fixture
def demo_bundle(tmp_path: Path) -> Path:
    """The unpacked zip of a small model of the demo."""
    torch.save(ResidualUNet(1, 4, TINY["widths"], stem_stride=1, norm="instance").state_dict(), tmp_path / "model.pt")
    files = str([str(ROOT / "configs/inference.yaml"), str(ROOT / "configs/datasets/demo.yaml")])
    weights = ("--ckpt_file", str(tmp_path / "model.pt"), "--widths", str(TINY["widths"]), "--norm", "instance")
    return unpacked(tmp_path, "--config_file", files, *weights)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_transforms_are_built_where_no_image_lies(ending, bundle, monkeypatch) -> None:
    """MONAI Label and MONAI Deploy build them all and drop SaveImaged; they have no folder of images."""
    monkeypatch.chdir(bundle)
    parser = ConfigParser()
    parser.read_config(str(bundle / f"configs/inference.{ending}"))
    parser.config.update({"bundle_root": str(bundle)})
    for key in ("network_def", "preprocessing", "inferer", "postprocessing"):
        assert parser.get_parsed_content(key) is not None
    assert isinstance(parser.get_parsed_content("postprocessing").transforms[-1], SaveImaged)


def demo_cases(tiny_demo: Path) -> list[dict[str, str]]:
    images = sorted((tiny_demo / "images").iterdir())[:3]
    return [{"image": str(i), "label": str(i).replace("/images/", "/labels/")} for i in images]


def label_request(bundle: Path, cases: list[dict[str, str]], handlers: list, **more) -> None:
    """`monai.bundle.run` as MONAI Label's training task calls it: all but the last of the cases train."""
    own = ("bundle_root", "device", "max_steps", "train::handlers::0::pictures")
    small = {key: value for key, value in TINY.items() if key not in own}
    run_bundle(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/train.json"),
        **{
            "bundle_root": str(bundle),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": cases[:-1],
            "device": torch.device("cpu"),
            "train#handlers": handlers,
            "validate#dataset#data": cases[-1:],
        },
        **{**small, "train#epoch_length": 2, **more},
    )


def test_training_as_monai_label_calls_it_twice(demo_bundle, tiny_demo, monkeypatch) -> None:
    """Cases without names, no unlabelled ones, one epoch, then another from the model that came of it."""
    bundle = demo_bundle
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    handlers = ConfigParser.load_config_file(str(bundle / "configs/train.json"))["train"]["handlers"]
    demo = {"dataset_dir": str(tiny_demo)}
    label_request(bundle, demo_cases(tiny_demo), handlers, val_interval=2, **demo)
    assert (bundle / "models/model_best.pt").exists(), "its own validation cases are validated"
    model = bundle / "models/model.pt"
    first = torch.load(model, weights_only=True)
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(model),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    label_request(bundle, demo_cases(tiny_demo), [loader, *handlers], **demo)
    second = torch.load(model, weights_only=True)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_the_zips_training_goes_on_from_the_shipped_model_where_its_dataset_is_not(
    bundle, shipped_weights, tmp_path, monkeypatch
) -> None:
    """MONAI Label on the unpacked zip: cases of its own, the hippocampus' classes, no datalist."""
    cases = []
    for number in range(3):
        image = volume((34, 40, 30))
        case = {"image": tmp_path / f"{number}.nii.gz", "label": tmp_path / f"{number}_label.nii.gz"}
        save(case["image"], image, affine())
        save(case["label"], np.digitize(image, np.quantile(image, [0.6, 0.8])).astype(np.uint8), affine())
        cases.append({key: str(path) for key, path in case.items()})
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.chdir(tmp_path)
    model = bundle / "models/model.pt"
    shipped = torch.load(shipped_weights, weights_only=True)
    loader = {"_target_": "CheckpointLoader", "load_path": str(model), "load_dict": {"model": "$@network"}}
    handlers = ConfigParser.load_config_file(str(bundle / "configs/train.json"))["train"]["handlers"]
    label_request(bundle, cases, [loader, *handlers], widths=[16, 32, 64, 128], norm="batch")
    trained = torch.load(model, weights_only=True)
    assert {key: value.shape for key, value in trained.items()} == {key: v.shape for key, v in shipped.items()}
    assert any(not torch.equal(trained[key], shipped[key]) for key in shipped)


def test_cases_that_a_reader_brings_are_alone_in_the_run(make_workflow, tiny_demo) -> None:
    images = sorted((tiny_demo / "images").iterdir())[:2]
    brought = [{"image": str(i), "label": str(i).replace("/images/", "/labels/")} for i in images]
    workflow = make_workflow("train.yaml", labelled_cases=2, **{"train#dataset#data": brought})
    assert len(workflow.parser.get_parsed_content("train::unlabelled_dataset")) == 0
    assert workflow.parser.get_parsed_content("restart") == 1, "the learning rate does not start again either"
    workflow = make_workflow("train.yaml", labelled_cases=2)
    assert len(workflow.parser.get_parsed_content("train::unlabelled_dataset")) == 4
