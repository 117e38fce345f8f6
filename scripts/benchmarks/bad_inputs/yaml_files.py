# SPDX-License-Identifier: Apache-2.0
"""Config files with mistakes: misspelt keys and classes, other types, broken YAML."""

from __future__ import annotations

from typing import Any

import yaml

from scripts.benchmarks.bad_inputs.ground import Ground
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, EXPORT, INFER, TRAIN, Kind, Spoil, every

WITH_CHECKS = (TRAIN, EVALUATE, INFER, CHECK)
WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -50, "a_max": 200, "b_min": 0, "b_max": 1}

NO_CLASSES = ("ScaleIntensityRangeDict2", "monai.transfroms.Foo")
FAILING = ("$[1.0, 2.0, 1 / 0]", "$unknown_name", "$[1, 2")


def _misspelt(ground: Ground) -> str:
    key = ground.draw.choice(("spacing", "roi_size", "label_names", "base_filters", "dataset_dir"))
    at = ground.draw.randrange(1, len(key) - 1)
    misspelt = key[:at] + key[at + 1] + key[at] + key[at + 2 :] if key[at] != key[at + 1] else key[:at] + key[at + 1 :]
    ground.settings[misspelt] = ground.settings.pop(key)
    return misspelt


def _unknown(ground: Ground) -> str:
    key = ground.draw.choice(("qqqqqq", "patch", "epochs", "lr"))
    ground.settings[key] = 5
    return key


def _set(key: str, *values: Any) -> Spoil:
    def spoil(ground: Ground) -> str:
        ground.settings[key] = values[ground.seed % len(values)]
        return key

    return spoil


def _type(*pairs: tuple[str, Any]) -> Spoil:
    def spoil(ground: Ground) -> str:
        key, value = pairs[ground.seed % len(pairs)]
        ground.settings[key] = value
        return key

    return spoil


def _text(*texts: str) -> Spoil:
    def spoil(ground: Ground) -> str:
        ground.config.write_text(texts[ground.seed % len(texts)], encoding="utf-8")
        return ""  # MONAI's own message does not name the file every time

    return spoil


def _other_type(ground: Ground) -> str:
    ground.settings["intensity"] = {**WINDOW, **({"keys": "picture"} if ground.seed % 2 else {"a_min": "low"})}
    return "ScaleIntensityRange"


def _twice(ground: Ground) -> str:
    key = ground.draw.choice(("spacing", "roi_size", "label_names"))
    text = yaml.safe_dump(ground.settings)
    ground.config.write_text(f"{text}{key}: {ground.settings[key]}\n", encoding="utf-8")
    return key


def _no_file(ground: Ground) -> str:
    ground.configs = ["nowhere.yaml"]
    return "nowhere.yaml"


def _no_reference(ground: Ground) -> str:
    ground.settings["roi_size"] = "@roi_sise"
    return "roi_sise"


def _circle(ground: Ground) -> str:
    ground.settings |= {"in_channels": "@labelled_cases", "labelled_cases": "$@in_channels + 1"}
    return "in_channels"


KINDS = (
    Kind("misspelt key of a config file", _misspelt, every("did you mean", *WITH_CHECKS), inputs=8),
    Kind("key of a config file that nothing uses", _unknown, every("Nothing uses", *WITH_CHECKS)),
    Kind("misspelt key inside of a block", _set("intensity", {**WINDOW, "a_mim": 0}, {**WINDOW, "kys": "image"}),
         every("unexpected|a_mim|kys", TRAIN, EVALUATE, INFER)),
    Kind("missing key inside of a block", _set("intensity", {"_target_": "ScaleIntensityRanged", "keys": "image"}),
         every("a_min", TRAIN, EVALUATE, INFER)),
    Kind("misspelt class", _set("intensity", *({**WINDOW, "_target_": name} for name in NO_CLASSES)),
         every("|".join(NO_CLASSES), TRAIN, EVALUATE, INFER)),
    Kind("block without a class", _set("intensity", {"keys": "image"}, None, 5), every("", TRAIN, EVALUATE, INFER)),
    Kind("other type inside of a block", _other_type, every("", TRAIN, EVALUATE, INFER)),
    Kind("key of another type", _type(("spacing", "1.5"), ("roi_size", "big"), ("label_names", {"0": "background"}),
                                      ("in_channels", "one"), ("label_names", "organ"), ("label_values", "0, 1")),
         every("must be", *WITH_CHECKS), inputs=6),
    Kind("label values that do not fit the names", _set("label_values", [0, 1], [0, 1, 2, 3]),
         every("classes|values", TRAIN, EVALUATE, CHECK)),
    Kind("expression that fails", _set("spacing", *FAILING), every("", *WITH_CHECKS)),
    Kind("reference to no key", _no_reference, every("roi_sise", *WITH_CHECKS)),
    Kind("keys that refer to each other", _circle, every("circular", TRAIN, INFER)),
    Kind("broken YAML", _text("a: [1, 2", "a: 1\n\tb: 2\n", "- a\n- b\n", "a: 'b\n"),
         every("mine.yaml", EXPORT), monai=every("", *WITH_CHECKS)),
    Kind("key twice in a config file", _twice, every("twice", *WITH_CHECKS)),
    Kind("config file missing", _no_file, every("does not exist", EXPORT), monai=every("Cannot find", *WITH_CHECKS)),
)  # fmt: skip
