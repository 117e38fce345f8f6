# SPDX-License-Identifier: Apache-2.0
"""A user error is found through whatever wraps it, and the message about any exception names what matters."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, ScaleIntensityRange

from scripts.errors import UserError, chain_of, describe, print_error, root_user_error


def raised(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def wrapped():
    try:
        try:
            raise UserError("The folder x does not exist.")
        except UserError as error:
            raise RuntimeError("Failed to instantiate cases") from error
    except RuntimeError as error:
        raise ValueError("Failed to evaluate") from error


def during_another():
    try:
        raise UserError("The folder x does not exist.")
    except UserError:
        raise KeyError("cleaning up failed") from None


@pytest.mark.parametrize("function", [wrapped, during_another])
def test_a_user_error_is_found_among_the_causes(function):
    assert str(root_user_error(raised(function))) == "The folder x does not exist."


def test_another_error_is_not_a_user_error():
    assert root_user_error(None) is None
    assert root_user_error(raised(lambda: 1 / 0)) is None


def test_causes_that_refer_to_each_other_end():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert root_user_error(a) is None


class Broken(torch.utils.data.Dataset):
    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise UserError("case_1 holds the label value 7: correct the file.")
        except UserError as error:
            if self.wrapped:  # as MONAI's transforms do
                raise RuntimeError("applying transform") from error
            raise


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_loading_is_the_same_with_and_without_worker_processes(wrapped, workers):
    loader = torch.utils.data.DataLoader(Broken(wrapped), num_workers=workers)
    with pytest.raises((UserError, RuntimeError)) as caught:
        next(iter(loader))
    assert str(root_user_error(caught.value)) == "case_1 holds the label value 7: correct the file."


def raised_by(config: dict[str, Any], entry: str) -> str:
    with pytest.raises(Exception) as caught:
        ConfigParser(config).get_parsed_content(entry)
    return describe(caught.value)


def test_a_user_error_is_found_behind_monais_errors() -> None:
    config = {"run": "$@cases", "cases": {"_target_": "scripts.files.require_file", "path": "nowhere", "hint": "look"}}
    assert "nowhere" in raised_by(config, "run")
    assert "--debug" not in raised_by(config, "run")


def test_a_component_that_cannot_be_built_is_named_with_its_argument() -> None:
    config = {"run": "$@net.x", "net": {"_target_": "torch.nn.Linear", "in_features": 2, "out_featurse": 3}}
    sentence = raised_by(config, "run")
    assert all(word in sentence for word in ("torch.nn.Linear", "out_featurse", "TypeError", "--debug"))
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("config", "entry", "named"),
    [
        ({"a": {"b": ["$1 / 0"]}}, "a::b::0", "$1 / 0"),
        ({"run": "$@side", "side": "$@size[3]", "size": [1, 2]}, "run", "$@size[3]"),
        ({"run": "$@spacing", "spacing": "$unknown_name"}, "run", "$unknown_name"),
        ({"run": "$@size", "size": "$[1, 2"}, "run", "[1, 2"),
    ],
)
def test_an_expression_that_fails_is_quoted(config, entry, named) -> None:
    assert named in raised_by(config, entry)


def test_an_error_in_code_that_an_expression_calls_is_not_that_of_the_expression() -> None:
    config = {
        "check": {"_target_": "scripts.files.require_file", "_mode_": "callable"},
        "run": "$@check(path=0, hint='')",
    }
    assert "@check" not in raised_by(config, "run")


def test_an_undefined_reference_is_named() -> None:
    assert "`@nothing`" in raised_by({"run": "$@nothing + 1"}, "run")


def test_the_transform_that_failed_is_named() -> None:
    config = {
        "run": "$@chain(@image)",
        "chain": Compose([ScaleIntensityRange("low", 1, 0, 1)]),
        "image": np.ones((1, 2)),
    }
    assert "ScaleIntensityRange" in raised_by(config, "run")


@pytest.mark.parametrize(("error", "words"), [(KeyError("x"), ["'x'", "KeyError"]), (ValueError(), ["ValueError"])])
def test_any_other_error_is_its_message_and_its_type(error, words) -> None:
    assert all(word in describe(error) for word in words)


def test_torchs_advice_to_load_code_is_not_passed_on() -> None:
    assert "False" not in describe(
        ValueError("Weights only load failed. Re-running with `weights_only` set to `False`")
    )


def test_a_full_disk_names_the_file() -> None:
    assert "/data/out.csv" in describe(OSError(errno.ENOSPC, "No space left on device", "/data/out.csv"))


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_exhausted_memory_names_the_key_to_lower(error) -> None:
    assert "roi_size" in describe(error)


def test_weights_of_another_network_name_the_first_tensor_that_does_not_fit() -> None:
    error = RuntimeError("Error(s) in loading state_dict for VNet:\n\tsize mismatch for out.weight: ...\n\tmore")
    assert "out.weight" in describe(error)


def test_a_chain_of_causes_that_refer_to_each_other_ends() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    assert chain_of(a) == [a, b]


@pytest.mark.parametrize("error", [UserError("The folder x does not exist."), ZeroDivisionError("by zero")])
@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_is_printed_for_debug_only(error, debug, capsys) -> None:
    print_error(error, debug)
    text = capsys.readouterr().err
    assert (type(error).__name__ + ": " in text) is debug
    assert text.rstrip().splitlines()[-1].startswith("Error: ")
