# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed or asked to stop, and resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from scripts.benchmarks import forked_command, kill_runs


@pytest.fixture(scope="module")
def whole(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    forked_command.load_libraries()
    folder = tmp_path_factory.mktemp("runs") / "whole"
    kill_runs.whole_run("default", 0, tiny_demo, folder)
    return folder


def test_a_run_killed_twice_once_while_writing_ends_like_one_never_stopped(whole: Path, tiny_demo, tmp_path) -> None:
    seconds = kill_runs.whole_run("default", 0, tiny_demo, whole)  # that it took, on this machine
    chain = kill_runs.Chain(5, "default", 0)  # whose first moment is a little before the middle
    kill_runs.kill_until_done(chain, 2, seconds, tiny_demo, tmp_path / "parts")
    assert chain.kills >= 1
    assert chain.lost == 0
    assert kill_runs.equal(kill_runs.results_of(whole), kill_runs.results_of(tmp_path / "parts"))


def test_a_run_that_is_told_to_end_saves_says_how_to_go_on_and_does(whole: Path, tiny_demo, tmp_path) -> None:
    """Told twice, and its loader's workers with it, as by a scheduler and `torchrun`."""
    words = kill_runs.command("default", 2, tiny_demo, tmp_path, "--save_interval", "5")
    process = forked_command.start(words, tmp_path)
    deadline = time.monotonic() + 120
    while not kill_runs.started(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process, signal.SIGTERM)
        time.sleep(0.01)
    assert forked_command.wait(process, 120) == 128 + signal.SIGTERM
    said = "".join((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout.txt", "stderr.txt"))
    assert "Stopped by SIGTERM after step" in said
    assert "--resume true goes on from there" in said
    assert "Traceback" not in said
    assert "ERROR" not in said
    again = forked_command.run(words, tmp_path, 120)
    assert again.code == 1
    assert "Add --resume true to go on with it" in again.errors
    assert "Traceback" not in again.errors
    ended = forked_command.run([*words, "--resume", "true"], tmp_path, 120)
    assert ended.code == 0, ended.errors
    assert kill_runs.equal(kill_runs.results_of(whole), kill_runs.results_of(tmp_path))


def test_a_forked_command_has_its_own_words_streams_and_exit_code(tmp_path) -> None:
    ended = forked_command.run(["monai.bundle", "run", "training", "--config_file", "none.yaml"], tmp_path)
    assert ended.code == 1
    assert "none.yaml" in ended.errors


def test_a_command_that_takes_too_long_is_ended(tmp_path) -> None:
    process = forked_command.start(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], tmp_path)
    assert forked_command.wait(process, 0.2) is None


def test_results_are_equal_only_to_the_bit() -> None:
    one = {"a": [torch.ones(2), 1.0], "b": None}
    assert kill_runs.equal(one, {"a": [torch.ones(2), 1.0], "b": None})
    for other in (
        {"a": [torch.ones(2).nextafter(torch.zeros(2)), 1.0], "b": None},
        {"a": [torch.ones(2).double(), 1.0], "b": None},
        {"a": [torch.ones(2), 1], "b": None},
        {"a": [torch.ones(2)], "b": None},
        {"a": [torch.ones(2), 1.0]},
    ):
        assert not kill_runs.equal(one, other)


def test_the_table_sums_each_kind_and_all() -> None:
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
