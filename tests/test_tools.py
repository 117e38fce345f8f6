# SPDX-License-Identifier: Apache-2.0
"""The tools of other tests: forked commands, the judge of bad inputs, the comparison of states, tables of campaigns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import forked_command
from tests.bad_case import TRAIN, Case, assert_refused
from tests.campaigns import kill_runs, ranks
from tests.recorded_runs import differences


def test_a_forked_command_has_its_own_words_streams_and_exit_code(tmp_path) -> None:
    done = forked_command.run(["monai.bundle", "run", "training", "--config_file", "none.yaml"], tmp_path)
    assert done.code == 1
    assert "none.yaml" in done.errors


def test_a_command_that_takes_too_long_is_killed(tmp_path) -> None:
    process = forked_command.start(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], tmp_path)
    assert forked_command.wait(process, 0.2) is None


@pytest.mark.parametrize(
    ("code", "errors", "results"),
    [
        (0, "Error: max_steps must be 1.", []),
        (None, "Error: max_steps must be 1.", []),
        (1, "Traceback (most recent call last):\nError: max_steps must be 1.", []),
        (1, "max_steps must be 1.", []),
        (1, "Error: it must be 1.", []),
        (1, "Error: max_steps must be 1.\nError: max_steps must be 1.", []),
        (1, "Error: max_steps must be 1.\nand more", []),
        (1, "Error: max_steps must be 1.", ["models/model.pt"]),
    ],
)
def test_the_judge_of_bad_inputs_sees_what_is_wrong(code, errors, results) -> None:
    case = Case(Path("/nowhere"), TRAIN, None, {})
    assert_refused(case, "max_steps", forked_command.Finished(1, "", "a warning\n\nError: max_steps must be 1.\n"), [])
    with pytest.raises(AssertionError):
        assert_refused(case, "max_steps", forked_command.Finished(code, "", errors), results)


def test_states_are_equal_only_to_the_bit() -> None:
    state = {"a": [torch.ones(2), 1.0], "b": None}
    assert differences(state, {"a": [torch.ones(2), 1.0], "b": None}) == []
    for other, path in (
        ({"a": [torch.ones(2).nextafter(torch.zeros(2)), 1.0], "b": None}, "/a/0"),
        ({"a": [torch.ones(2).double(), 1.0], "b": None}, "/a/0"),
        ({"a": [torch.ones(2), 1], "b": None}, "/a/1"),
        ({"a": [torch.ones(2)], "b": None}, "/a"),
        ({"a": [torch.ones(2), 1.0]}, ""),
    ):
        assert differences(state, other) == [path]


def test_the_table_of_kills_has_sums_for_each_kind_and_for_all() -> None:
    rows = [
        dict(zip(kill_runs.COLUMNS, values, strict=True))
        for values in (
            ("0", "default", "0", "5", "1", "2", "2", "0", "True"),
            ("1", "default", "2", "3", "0", "2", "1", "0", "True"),
            ("2", "default", "0", "4", "0", "4", "0", "1", "False"),
        )
    ]
    assert kill_runs.table(rows).splitlines()[2:] == [
        "| default | 0 | 2 | 9 | 1 / 6 / 2 | 1 | 1 |",
        "| default | 2 | 1 | 3 | 0 / 2 / 1 | 0 | 1 |",
        "| all |  | 3 | 12 | 1 / 8 / 3 | 1 | 2 |",
    ]


def test_the_control_of_ranks_moves_weights_by_the_last_digit() -> None:
    before = torch.nn.Linear(8, 8)
    after = ranks.nudged(torch.nn.Linear(8, 8))
    after.load_state_dict(before.state_dict())
    moved = ranks.nudged(after).weight - before.weight
    assert 0 < moved.count_nonzero() < moved.numel()
    assert moved.abs().max() < 1e-6
