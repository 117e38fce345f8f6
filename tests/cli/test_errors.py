# SPDX-License-Identifier: Apache-2.0
"""An error that nobody foresaw names the entry of the config files and what the library says."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose, ScaleIntensityRange

from scripts.cli.errors import causes_of, describe_error


def raised_by(config: dict[str, Any], entry: str) -> str:
    with pytest.raises(Exception) as caught:
        ConfigParser(config).get_parsed_content(entry)
    return describe_error(caught.value)


def test_the_innermost_entry_and_the_librarys_words_are_named() -> None:
    config = {"run": "$@net.x", "net": {"_target_": "torch.nn.Linear", "in_features": 2, "out_featurse": 3}}
    sentence = raised_by(config, "run")
    assert sentence.startswith("`net` in the config files failed: ")
    assert "out_featurse" in sentence and "(TypeError)" in sentence and "--debug true" in sentence
    assert "\n" not in sentence


def test_an_entry_that_is_inside_of_another_is_named_with_its_path() -> None:
    assert raised_by({"a": {"b": ["$1 / 0"]}}, "a::b::0").startswith(
        "`a::b::0` in the config files failed: division by"
    )


def test_a_reference_to_no_key_is_named() -> None:
    assert "`@nothing` is not defined" in raised_by({"run": "$@nothing + 1"}, "run")


def test_an_error_outside_of_a_config_is_told_without_an_entry() -> None:
    assert describe_error(KeyError("x")).startswith("This failed: 'x' (KeyError).")
    assert describe_error(ValueError()).startswith("This failed: ValueError.")


def test_the_transform_that_failed_is_named() -> None:
    config = {
        "run": "$@chain(@image)",
        "chain": Compose([ScaleIntensityRange("low", 1, 0, 1)]),
        "image": np.ones((1, 2)),
    }
    assert raised_by(config, "run").startswith(
        "`run` in the config files failed in the transform ScaleIntensityRange: "
    )


def test_torchs_advice_to_load_code_is_not_passed_on() -> None:
    words = describe_error(ValueError("Weights only load failed. (1) Re-running with `weights_only` set to `False`"))
    assert "it holds more than weights" in words and "False" not in words


def test_outside_of_a_config_the_commands_checkpoint_is_named() -> None:
    assert describe_error(ValueError("torn"), {"ckpt_file": "m.pt"}).startswith("The command on m.pt failed: torn (Val")


def test_a_full_disk_names_the_file() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/out.csv")
    assert describe_error(full).startswith("/data/out.csv cannot be read or written (No space left on device)")


def test_exhausted_memory_says_what_to_lower() -> None:
    assert "roi_size" in describe_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert "roi_size" in describe_error(MemoryError())


def test_an_interruption_is_one_word() -> None:
    assert describe_error(KeyboardInterrupt()) == "Interrupted."


def test_weights_of_another_network_are_told_by_the_first_that_does_not_fit() -> None:
    error = RuntimeError("Error(s) in loading state_dict for VNet:\n\tsize mismatch for out.weight: ...\n\tmore")
    assert "size mismatch for out.weight" in describe_error(error)


def test_causes_that_refer_to_each_other_end() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert list(causes_of(a)) == [a, b]
