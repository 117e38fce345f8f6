# SPDX-License-Identifier: Apache-2.0
"""An invalid value is refused with the name of its key; valid values, expressions and unknown keys pass."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts.cli.rules import RULES, check_settings
from scripts.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", "abc"), ("max_steps", 0), ("max_steps", 2.5), ("max_steps", True), ("max_steps", None),
        ("num_workers", -1), ("batch_labelled", 0), ("labelled_cases", 0), ("learning_rate", -1), ("learning_rate", 0),
        ("learning_rate", math.nan), ("learning_rate", math.inf), ("learning_rate", "1e-3"), ("unlabelled_start", 1.5),
        ("cache", "tape"), ("cache_dir", ""), ("num_workers", "many"),
        ("resume", "yes"), ("precision", "fp16"), ("device", "gpu"), ("device", "cuda:99"),
        ("class_weights", [1]), ("class_weights", [1, -1]), ("class_weights", [0, 0]), ("class_weights", 2),
        ("device", "hpu"), ("device", "meta"),
        ("spacing", [1, 1]), ("spacing", [1, 1, 0]), ("spacing", 1), ("roi_size", 5), ("roi_size", [32, 32, 1.5]),
        ("label_names", ["background"]), ("label_names", ["a", "a"]), ("label_names", "ab"), ("label_names", ["a", 1]),
        ("label_values", [0, 0]), ("label_values", [0, [1, 0]]), ("label_values", [0, []]),
        ("regions", {"a": []}), ("regions", {}), ("regions", ["a"]), ("regions", {"a": "b"}),
        ("label_values", [0, 0.5]), ("flip_axes", [3]), ("flip_axes", 0), ("datalist", ""),
        ("dataset_dir", 5), ("ignore_value", "none"), ("save_confidence", "maybe"), ("save_probabilities", 1.5),
        ("save_uncertainty", None), ("largest_component", 2), ("largest_component", []), ("mirror_axes", [3]),
        ("output_format", "dicom"), ("val_interval", 0), ("save_interval", -1), ("keep_states", 0),
        ("batch_unlabelled", -1), ("teacher_decay", 1.5), ("seed", -1), ("validation_cases", -1), ("in_channels", 0),
        ("widths", [4, 4, 4]), ("widths", [4, 4, 4, 0]), ("stem_stride", 3), ("restart", 0), ("restart", 1.5),
        ("base_filters", 0), ("size_divisor", 0), ("prototype_dim", 0), ("elements_per_class", -1),
        ("feature_channels", 0), ("flip_prob", 1.1), ("flip_axes", [0, 0]), ("spacing", [0, 1, 1]),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_its_key(key, value) -> None:
    with pytest.raises(UserError) as caught:
        check_settings({key: value})
    assert repr(value) in str(caught.value)
    assert f"--{key}" in str(caught.value)


def test_none_is_checked_in_the_form_that_monai_keeps() -> None:
    check_settings({"labelled_cases": "$None"})
    with pytest.raises(UserError, match="seed"):
        check_settings({"seed": "$None"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", 1), ("resume", "true"), ("num_workers", 0), ("num_workers", "auto"), ("cache", "disk"),
        ("labelled_cases", None), ("ignore_value", 255),
        ("label_values", [0, 255]), ("label_values", [[0], [1, 2, 4]]), ("regions", {"whole": ["a", "b"]}),
        ("regions", None), ("save_confidence", False), ("save_uncertainty", "true"), ("mirror_axes", [0, 2]),
        ("largest_component", True), ("largest_component", ["liver", "left lung"]), ("output_format", "input"),
        ("output_format", "dicom_seg"),
        ("spacing", (0.5, 1, 2.0)), ("flip_axes", []), ("unlabelled_start", 0), ("teacher_decay", 1.0),
        ("spacing", "$[1, 2, 3]"), ("max_steps", "@other"), ("nobody_knows", "abc"),
    ],
)  # fmt: skip
def test_a_valid_value_an_expression_or_an_unknown_key_passes(key, value) -> None:
    check_settings({key: value})


def test_regions_of_unknown_structures_are_refused() -> None:
    names = ["background", "liver", "tumour"]
    check_settings({"regions": {"all": ["liver", "tumour"]}, "label_names": names})
    for unknown in ("nope", "background"):
        with pytest.raises(UserError, match=unknown):
            check_settings({"regions": {"all": ["liver", unknown]}, "label_names": names})


def test_another_number_of_class_weights_than_of_names_is_refused() -> None:
    check_settings({"class_weights": [1, 2.5], "label_names": ["background", "liver"]})
    with pytest.raises(UserError, match="class_weights"):
        check_settings({"class_weights": [1, 2.5, 1], "label_names": ["background", "liver"]})


@pytest.mark.parametrize("there", [False, True])
def test_a_device_of_another_maker_is_taken_where_it_is(there, monkeypatch) -> None:
    def empty(*_size, device):
        if not there:
            raise RuntimeError("PyTorch is not linked with support for mps devices")

    monkeypatch.setattr("torch.empty", empty)
    if there:
        check_settings({"device": "mps"})
    else:
        with pytest.raises(UserError, match="'mps'"):
            check_settings({"device": "mps"})


@pytest.mark.parametrize("file", [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*/*.yaml")], ids=lambda file: file.name)
def test_every_config_of_the_bundle_keeps_the_rules(file) -> None:
    content = ConfigParser.load_config_file(file)
    content.pop("predictions", None)  # null in its file: it must be given
    check_settings(content)


def test_the_text_null_in_a_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"labelled_cases must be .*null"):
        check_settings({"labelled_cases": "null"})


def test_every_rule_is_about_a_key_of_a_config() -> None:
    files = [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*/*.yaml")]
    keys = {key for file in files for key in ConfigParser.load_config_file(file)}
    assert not RULES.keys() - keys


@pytest.mark.parametrize("key", sorted(RULES))
def test_every_rule_refuses_a_value_of_another_type(key) -> None:
    with pytest.raises(UserError, match=key):
        check_settings({key: {"a": [1]}})
