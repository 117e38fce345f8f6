# SPDX-License-Identifier: Apache-2.0
"""A user error is found through whatever wraps it, also when it comes from a loader's worker process."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import UserError, root_user_error


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
