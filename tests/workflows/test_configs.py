# SPDX-License-Identifier: Apache-2.0
"""Every configuration file runs, and says what the others rely on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = sorted(f"methods/{path.name}" for path in (CONFIGS / "methods").glob("*.yaml"))
DATASETS = sorted(f"datasets/{path.name}" for path in (CONFIGS / "datasets").glob("*.yaml"))
OVERRIDABLE = [
    *("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "device", "precision", "seed", "max_steps"),
    *("labelled_cases", "roi_size", "batch_labelled", "batch_unlabelled", "learning_rate", "val_interval", "resume"),
]


def load(name: str) -> dict:
    return ConfigParser.load_config_file(str(CONFIGS / name))


@pytest.mark.parametrize("key", OVERRIDABLE)
def test_every_key_that_people_override_is_at_the_top_with_a_comment(key) -> None:
    text = (CONFIGS / "train.yaml").read_text()
    assert key in load("train.yaml")
    assert re.search(rf"^{key}: .*  # \S", text, re.MULTILINE), f"{key} has no comment"


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_file_says_nothing_about_the_method(dataset) -> None:
    train = load("train.yaml")
    keys = set(load(dataset))
    assert keys <= set(train), "a dataset names a key that nothing reads"
    method_keys = {"terms", "method_handlers", "memory", "prototype_loss", "network_def", "train", "learning_rate"}
    assert not keys & method_keys


@pytest.mark.parametrize("method", METHODS)
def test_a_method_file_says_nothing_about_the_data_and_is_short(method) -> None:
    data_keys = {
        "dataset_dir",
        "datalist",
        "label_names",
        "spacing",
        "intensity",
        "roi_size",
        "in_channels",
    }
    assert not set(load(method)) & data_keys
    text = (CONFIGS / method).read_text()
    assert len(text.splitlines()) <= 60
    assert text.startswith("# "), "it opens with what it is and where it comes from"


@pytest.mark.parametrize("method", ["datasets/demo.yaml", *METHODS])  # a dataset's file has the terms of train.yaml
def test_a_ramp_on_unlabelled_cases_begins_with_the_first_of_them(method) -> None:
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / name) for name in ("train.yaml", method)]))
    if parser["restart"] != 1:
        parser["restart"] = 0.5  # as with unlabelled cases, which are not there
    first = round(1000 * parser.get_parsed_content("unlabelled_start"))
    kinds = {"UnlabelledContrastTerm", "PseudoLabelTerm", "SoftPseudoLabelTerm", "ConsistencyTerm", "CorrelationTerm"}
    for name, term in parser["terms"].items():
        if term["_target_"].rpartition(".")[2] in kinds:
            weight = parser.get_parsed_content(f"terms::{name}::weight")
            if isinstance(weight, float):  # the method document's manager has no ramp
                continue
            assert weight.at(first, 1000) == 0
            assert weight.at(first + 1, 1000) < 0.01 * weight.value, "it would enter in one step"
            assert weight.at(1000, 1000) == weight.value


def test_the_demo_dataset_file_is_what_train_yaml_holds() -> None:
    train, demo = load("train.yaml"), load("datasets/demo.yaml")
    assert {key: train[key] for key in demo} == demo


def test_no_number_is_read_as_text() -> None:
    """YAML reads 1e-3 as a string; 1.0e-3 is a number."""
    for path in CONFIGS.rglob("*.yaml"):
        assert not re.search(r":\s+\d+e-?\d+\s", path.read_text()), path.name
