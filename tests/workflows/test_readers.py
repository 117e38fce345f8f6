# SPDX-License-Identifier: Apache-2.0
"""What readers of bundles do with this one, by their own contract (docs/readers.md has the runs of the real ones)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from monai.transforms import SaveImaged

from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy without data, as it is unpacked somewhere."""
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / "bundle" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "bundle"


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


def label_request(bundle: Path, tiny_demo: Path, handlers: list, **more) -> None:
    """`monai.bundle.run` as MONAI Label's training task calls it, on three of the demo's cases."""
    images = sorted((tiny_demo / "images").iterdir())[:3]
    cases = [{"image": str(i), "label": str(i).replace("/images/", "/labels/")} for i in images]
    small = {key: value for key, value in TINY.items() if key not in ("bundle_root", "device", "max_steps")}
    run_bundle(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/train.json"),
        **{
            "bundle_root": str(bundle),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": cases[:2],
            "device": torch.device("cpu"),
            "train#handlers": handlers,
            "validate#dataset#data": cases[2:],
        },
        **{**small, "train#epoch_length": 2, "data_source": str(tiny_demo), "dataset_dir": str(tiny_demo), **more},
    )


def test_training_as_monai_label_calls_it_twice(bundle, tiny_demo, monkeypatch) -> None:
    """Cases without names, no unlabelled ones, one epoch, then another from the model that came of it."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    handlers = ConfigParser.load_config_file(str(bundle / "configs/train.json"))["train"]["handlers"]
    label_request(bundle, tiny_demo, handlers)
    model = bundle / "models/model.pt"
    first = torch.load(model, weights_only=True)
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(model),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    label_request(bundle, tiny_demo, [loader, *handlers])
    second = torch.load(model, weights_only=True)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_cases_that_a_reader_brings_are_alone_in_the_run(make_workflow, tiny_demo) -> None:
    images = sorted((tiny_demo / "images").iterdir())[:2]
    brought = [{"image": str(i), "label": str(i).replace("/images/", "/labels/")} for i in images]
    workflow = make_workflow("train.yaml", labelled_cases=2, **{"train#dataset#data": brought})
    assert len(workflow.parser.get_parsed_content("train::unlabelled_dataset")) == 0
    workflow = make_workflow("train.yaml", labelled_cases=2)
    assert len(workflow.parser.get_parsed_content("train::unlabelled_dataset")) == 4
