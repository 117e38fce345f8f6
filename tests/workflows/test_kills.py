# SPDX-License-Identifier: Apache-2.0
"""Training processes that are killed or told to stop, and resumed. More kills: tests/campaigns/kill_runs.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked_command
from tests.campaigns import kill_runs
from tests.recorded_runs import differences


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kill_runs, "STEPS", 6)
        yield


@pytest.fixture(scope="module")
def whole(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, shorter than those of the campaign."""
    forked_command.load_libraries()
    folder = tmp_path_factory.mktemp("runs") / "whole"
    kill_runs.uninterrupted_run("default", 0, tiny_demo, folder)
    return folder


def test_a_run_killed_twice_once_while_writing_ends_like_an_uninterrupted_one(whole, tiny_demo, tmp_path) -> None:
    seconds = kill_runs.uninterrupted_run("default", 0, tiny_demo, whole)  # the time it took on this machine
    chain = kill_runs.Chain(5, "default", 0)  # its first moment is a little before the middle
    kill_runs.kill_and_resume(chain, 2, seconds, tiny_demo, tmp_path / "parts")
    assert chain.kills >= 1
    assert chain.lost == 0
    assert not differences(kill_runs.results_of(whole), kill_runs.results_of(tmp_path / "parts"))


def test_a_run_that_is_told_to_stop_saves_and_can_be_resumed(whole, tiny_demo, tmp_path) -> None:
    """The signal comes twice and reaches the loader's workers too, as from a scheduler or `torchrun`."""
    words = kill_runs.training_command("default", 2, tiny_demo, tmp_path, "--save_interval", "5")
    process = forked_command.start(words, tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "models/model_best.pt").exists() and time.monotonic() < deadline:  # half of the steps
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process, signal.SIGTERM)
        time.sleep(0.01)
    assert forked_command.wait(process, 120) == 128 + signal.SIGTERM
    printed = "".join((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout.txt", "stderr.txt"))
    assert "SIGTERM" in printed and "--resume true" in printed
    assert "Traceback" not in printed
    assert "ERROR" not in printed
    again = forked_command.run(words, tmp_path, 120)
    assert again.code == 1
    assert "--resume true" in again.errors
    assert "Traceback" not in again.errors
    resumed = forked_command.run([*words, "--resume", "true"], tmp_path, 120)
    assert resumed.code == 0, resumed.errors
    assert not differences(kill_runs.results_of(whole), kill_runs.results_of(tmp_path))
