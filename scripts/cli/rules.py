# SPDX-License-Identifier: Apache-2.0
"""Allowed values of the top-level config keys, so that an invalid value is reported before any work begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scripts.errors import UserError


@dataclass(frozen=True)
class Rule:
    """A condition on a value, in words and as a function."""

    words: str
    holds: Callable[[Any], bool]


def check_settings(values: Mapping[str, Any]) -> None:
    """Check the values of top-level keys.

    Args:
        values: values of the top-level keys of the config files. Expressions (`$...`), references (`@...`) and blocks
            with a `_target_` are skipped, because they are evaluated later.

    Raises:
        UserError: for the first key with an invalid value, if the numbers of weights and of classes differ, or if a
            region does not consist of classes.
    """
    rules = RULES | {"dataset_dir": IMAGES} if "image_pattern" in values else RULES  # configs/inference.yaml has it
    for key, rule in rules.items():
        if key not in values:
            continue
        value = None if values[key] == "$None" else values[key]  # how MONAI is told of None
        if _comes_later(value):
            continue
        if not rule.holds(value):
            raise UserError(f"{key} must be {rule.words}, got {value!r}: correct it in its file or with --{key}.")
    weights, names, regions = (values.get(key) for key in ("class_weights", "label_names", "regions"))
    if isinstance(regions, Mapping) and isinstance(names, list | tuple):
        from scripts.evaluation.report import reported  # here, because few runs have regions

        reported(dict(enumerate(names)), regions)
    if isinstance(weights, list | tuple) and isinstance(names, list | tuple) and len(weights) != len(names):
        raise UserError(
            f"class_weights has {len(weights)} numbers, but label_names names {len(names)} classes: give one "
            "number for each class, background first."
        )


def _comes_later(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _whole(least: int) -> Rule:
    return Rule(f"a whole number of at least {least}", lambda v: _is_whole(v) and v >= least)


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.words}, or null", lambda v: v is None or rule.holds(v))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _three(value: Any, each: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(each, value))


def _is_device(value: Any) -> bool:
    try:
        device = torch.device(value)
        if device.type != "cuda":  # skip CUDA: a test would initialise the GPU
            torch.empty(0, device=device)  # torch parses names of devices that it was not built for
    except (AssertionError, ImportError, RuntimeError, TypeError):
        return False
    return device.type != "meta" and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count())


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) >= 2 and all(map(_is_text, value)) and _differ(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value))


def _are_two_texts(value: Any) -> bool:
    return _are_texts(value) and len(value) == 2


def _are_label_values(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) < 2 or any(each in ([], ()) for each in value):
        return False
    values = [v for each in value for v in (each if isinstance(each, list | tuple) else [each])]
    return all(map(_is_whole, values)) and _differ(values)


def _are_regions(value: Any) -> bool:
    return isinstance(value, Mapping) and _are_texts(list(value)) and all(map(_are_texts, value.values()))


def _are_weights(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) >= 2 and all(_is_number(v) and v >= 0 for v in value)
    return numbers and sum(value) > 0


def _are_axes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(v) and v in (0, 1, 2) for v in value) and _differ(value)


def _differ(values: Any) -> bool:
    return len(set(values)) == len(values)


TEXT = Rule("a non-empty string", _is_text)
FOLDER = Rule("the path of a folder", _is_text)
IMAGES = Rule(
    "the path of a folder, an image or a list file, or a list of images",
    lambda v: _is_text(v) or (isinstance(v, list | tuple) and all(_is_text(item) or _are_texts(item) for item in v)),
)
SWITCH = Rule("true or false", lambda v: isinstance(v, bool) or v in ("true", "false"))  # options are strings
LABEL_VALUES = Rule("a list of at least two different whole numbers or lists of them", _are_label_values)
FRACTION = Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "cache_dir"), FOLDER),
    **dict.fromkeys(("dataset_name", "datalist", "feature_layer", "image_pattern"), TEXT),
    "device": Rule('a device that this machine has, such as "cpu"', _is_device),
    "precision": Rule("auto, fp32 or bf16", lambda v: v in ("auto", "fp32", "bf16")),
    **dict.fromkeys(
        (
            "use_learned_selector",
            "resume",
            "keep_models",
            "save_probabilities",
            "save_confidence",
            "save_uncertainty",
            "skip_empty",
        ),
        SWITCH,
    ),
    # a list is the run id of configs/report.yaml
    "report": Rule(SWITCH.words, lambda v: SWITCH.holds(v) or isinstance(v, list)),
    "checkpoint": Rule("the name of a file, or a list of names", lambda v: _is_text(v) or _are_texts(v)),
    "largest_component": Rule(
        f"{SWITCH.words}, or a list of names of structures", lambda v: SWITCH.holds(v) or _is_text(v) or _are_texts(v)
    ),
    "layout": Rule("files or nnunet", lambda v: v in ("files", "nnunet")),
    "output_format": Rule(
        "nifti, input, seg_nrrd or dicom_seg", lambda v: v in ("nifti", "input", "seg_nrrd", "dicom_seg")
    ),
    "intensity": Rule("a transform: a block with a _target_", lambda v: isinstance(v, dict) and "_target_" in v),
    **dict.fromkeys(("seed", "batch_unlabelled", "validation_cases"), _whole(0)),
    "num_workers": Rule("auto, or a whole number of at least 0", lambda v: v == "auto" or (_is_whole(v) and v >= 0)),
    "cache": Rule("auto, memory or disk", lambda v: v in ("auto", "memory", "disk")),
    **dict.fromkeys(("max_steps", "val_interval", "save_interval", "keep_states"), _whole(1)),
    **dict.fromkeys(("batch_labelled", "accumulation_steps"), _whole(1)),
    **dict.fromkeys(("in_channels", "base_filters", "size_divisor", "prototype_dim", "elements_per_class"), _whole(1)),
    "feature_channels": _whole(1),
    "widths": Rule(
        "a list of four whole numbers of at least 1, such as [16, 32, 64, 128]",
        lambda v: isinstance(v, list | tuple) and len(v) == 4 and all(_is_whole(x) and x >= 1 for x in v),
    ),
    "stem_stride": Rule("1 or 2", lambda v: _is_whole(v) and v in (1, 2)),
    "restart": Rule("a number above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1),
    "labelled_cases": _or_null(_whole(1)),
    "ignore_value": _or_null(Rule("a whole number", _is_whole)),
    "slices": _or_null(_whole(1)),
    **dict.fromkeys(("unlabelled_start", "teacher_decay", "flip_prob"), FRACTION),
    "runs": _or_null(Rule("a list of two paths, such as ['outputs/a','outputs/b']", _are_two_texts)),
    "comparison_dir": _or_null(FOLDER),
    "predictions": _or_null(Rule("the path of a folder of label volumes", _is_text)),
    "regions": _or_null(Rule("a mapping from names to lists of names of classes", _are_regions)),
    "prediction_values": _or_null(LABEL_VALUES),
    "initial_weights": _or_null(Rule("the path of a file with weights", _is_text)),
    "crossval_dir": FOLDER,
    "folds": _or_null(_whole(2)),
    "patient_pattern": _or_null(TEXT),
    "surface_tolerance_mm": Rule("a number of at least 0 (mm)", lambda v: _is_number(v) and v >= 0),
    "contrastive_weight": Rule("a number of at least 0", lambda v: _is_number(v) and v >= 0),
    "learning_rate": Rule("a number above 0", lambda v: _is_number(v) and v > 0),
    "spacing": Rule(
        "three numbers above 0 (mm), such as [1.0, 1.0, 1.0]", lambda v: _three(v, lambda x: _is_number(x) and x > 0)
    ),
    "roi_size": Rule(
        "three whole numbers of at least 1 (voxels), such as [64, 64, 64]",
        lambda v: _three(v, lambda x: _is_whole(x) and x >= 1),
    ),
    "label_names": Rule("a list of at least two different names, background first", _are_names),
    "label_values": _or_null(LABEL_VALUES),
    "class_weights": _or_null(
        Rule("a list with a number of at least 0 for each class, background first", _are_weights)
    ),
    **dict.fromkeys(
        ("flip_axes", "mirror_axes"), Rule("a list of different axes (0, 1 or 2), such as [0], or []", _are_axes)
    ),
}
