# SPDX-License-Identifier: Apache-2.0
"""Command lines with mistakes: values of another type or out of range, misspelt keys, words that belong nowhere."""

from __future__ import annotations

from scripts.benchmarks.bad_inputs.ground import Ground
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, INFER, NEW, TRAIN, Kind, Spoil, every

WITH_CHECKS = (TRAIN, EVALUATE, INFER, CHECK)
OUT_OF_RANGE = (
    ("max_steps", "0"), ("max_steps", "-5"), ("val_interval", "0"), ("save_interval", "-1"), ("keep_states", "0"),
    ("batch_labelled", "0"), ("batch_unlabelled", "-1"), ("unlabelled_start", "1.5"), ("unlabelled_start", "-0.1"),
    ("learning_rate", "-1"), ("learning_rate", "0"), ("learning_rate", "1e999"), ("teacher_decay", "1.5"),
    ("teacher_decay", "-1"), ("num_workers", "-1"), ("seed", "-1"), ("labelled_cases", "0"), ("labelled_cases", "-2"),
    ("validation_cases", "-1"), ("in_channels", "0"), ("spacing", "[0,1,1]"), ("spacing", "[1,1]"),
    ("roi_size", "[16,16]"), ("roi_size", "[0,16,16]"), ("roi_size", "[16,16,-16]"), ("cache_rate", "2"),
    ("flip_axes", "[3]"), ("flip_axes", "[0,0]"), ("flip_prob", "1.1"), ("base_filters", "0"), ("size_divisor", "0"),
    ("prototype_dim", "0"), ("elements_per_class", "-1"), ("feature_channels", "0"), ("label_names", "['one']"),
    ("label_names", "['a','a','b']"), ("label_values", "[0,0,1]"), ("precision", "fp8"), ("device", "cuda:77"),
)  # fmt: skip
OF_ANOTHER_TYPE = (
    ("max_steps", "abc"), ("max_steps", "2.5"), ("max_steps", "[1]"), ("val_interval", "often"), ("roi_size", "5"),
    ("roi_size", "[16,16,1.5]"), ("spacing", "fine"), ("learning_rate", "fast"), ("batch_labelled", "1.5"),
    ("num_workers", "many"), ("seed", "one"), ("resume", "maybe"), ("precision", "16"), ("device", "gpu"),
    ("labelled_cases", "all"), ("validation_cases", "some"), ("in_channels", "True"), ("label_names", "organ"),
    ("label_values", "[0,'a',2]"), ("ignore_value", "none"), ("cache_rate", "all"), ("flip_axes", "0"),
    ("flip_prob", "often"), ("dataset_dir", "5"), ("datalist", "5"), ("base_filters", "4.5"), ("feature_layer", "7"),
    ("teacher_decay", "slow"), ("unlabelled_start", "late"), ("output_dir", "5"), ("ckpt_dir", "[1]"),
    ("keep_states", "all"), ("save_interval", "1.5"), ("size_divisor", "x"), ("dataset_name", "5"),
)  # fmt: skip
NEW_OPTIONS = (
    ("--test_fraction", "1.5"), ("--test_fraction", "-1"), ("--test_cases", "-1"), ("--test_cases", "100"),
    ("--labels", "/nowhere"), ("--unlabelled", "/nowhere"), ("--label_names", "one"), ("--ignore_value", "x"),
    ("--channels", "t9"), ("--patient_pattern", "("), ("--nonsense", "1"), ("--test_cases", "many"),
)  # fmt: skip

# In each of these the last word is what must be named.
VALUE_MISSING = (("--max_steps", "max_steps"), ("--spacing", "spacing"))
MISSPELT = (("--max_stepz", "3", "max_steps"), ("--spaccing", "1", "spacing"), ("--devcie=cpu", "device"))
MISSPELT_PARTS = (
    ("--network_def::base_filtres", "4", "base_filters"),
    ("--intensity::channel_wize", "1", "channel_wise"),
)
ALONE = (("oops", "oops"), ("seed", "3", "seed"))


def _value(pairs: tuple[tuple[str, str], ...]) -> Spoil:
    def spoil(ground: Ground) -> str:
        key, value = pairs[ground.seed % len(pairs)]
        ground.more += [f"--{key}", value]
        return key

    return spoil


def _option_of_new(ground: Ground) -> str:
    words = NEW_OPTIONS[ground.seed % len(NEW_OPTIONS)]
    ground.more += words
    return words[1] if words[1].startswith("/") else words[0].lstrip("-")


def _words(*choices: tuple[str, ...]) -> Spoil:
    def spoil(ground: Ground) -> str:
        *words, named = choices[ground.seed % len(choices)]
        ground.more += words
        return named

    return spoil


def _run_id(ground: Ground) -> str:
    ground.run_id = ground.draw.choice(("trainign", "evaluate_all", "chek_data", "runn"))
    return ground.run_id


def _no_args_file(ground: Ground) -> str:
    ground.more += ["--args_file", "nowhere.yaml"]
    return "nowhere.yaml"


KINDS = (
    Kind("value out of range", _value(OUT_OF_RANGE), every("must be", TRAIN), inputs=len(OUT_OF_RANGE)),
    Kind("value of another type", _value(OF_ANOTHER_TYPE), every("must be", TRAIN), inputs=len(OF_ANOTHER_TYPE)),
    Kind("value missing", _words(*VALUE_MISSING), every("must be", TRAIN, CHECK)),
    Kind("misspelt option", _words(*MISSPELT), every("[Dd]id you mean", *WITH_CHECKS)),
    Kind("misspelt part of an option", _words(*MISSPELT_PARTS), every("[Dd]id you mean", *WITH_CHECKS)),
    Kind("word that belongs to no option", _words(*ALONE), every("stands alone", *WITH_CHECKS)),
    Kind("misspelt command", _run_id, every("nothing to run", *WITH_CHECKS)),
    Kind("args_file missing", _no_args_file, monai=every("nowhere.yaml", TRAIN, INFER)),
    Kind("bad option of new_dataset", _option_of_new, every("", NEW), inputs=len(NEW_OPTIONS)),
)
