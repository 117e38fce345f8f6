# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to stop saves first, and goes on as if it had not been."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from ignite.engine import Events

from scripts.training.interruption import StopOnSignal
from tests.training.toy_run import Run, assert_same, file_names

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def send_at(run: Run, step: int, number: int) -> Run:
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=step), lambda: os.kill(os.getpid(), number))
    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_step_at_hand_and_the_resumed_run_ends_the_same(tmp_path, caplog, number, workers):
    whole = Run(tmp_path / "whole", 7, interval=100).go()
    folder = tmp_path / "parts"
    before = [signal.getsignal(each) for each in SIGNALS]
    with caplog.at_level(logging.WARNING, "Interruption"), pytest.raises(SystemExit) as stopped:
        send_at(Run(folder, 7, interval=100, workers=workers), 3, number).go()
    assert stopped.value.code == 128 + number
    assert file_names(folder) == ["checkpoint_00000003.pt"]
    assert "after step 3" in caplog.text and "--resume true" in caplog.text
    assert [signal.getsignal(each) for each in SIGNALS] == before
    resumed = Run(folder, 7, interval=100, resume=True).go()
    assert resumed.steps == [4, 5, 6, 7]
    assert_same(resumed.everything(), whole.everything())


def test_a_signal_at_the_last_step_lets_the_run_end(tmp_path):
    assert send_at(Run(tmp_path, 3), 3, signal.SIGTERM).go().steps == [1, 2, 3]
    assert file_names(tmp_path)[-1] == "checkpoint_00000003.pt"


def test_after_an_error_signals_mean_what_they_meant_before(tmp_path):
    before = [signal.getsignal(each) for each in SIGNALS]
    Run(tmp_path, 7, killed_at=4).go_until_killed()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_outside_the_main_thread_a_run_goes_without(tmp_path):
    """Servers train in threads, where Python refuses to set signal handlers."""
    run = Run(tmp_path, 3)
    thread = threading.Thread(target=run.go)
    thread.start()
    thread.join()
    assert run.steps == [1, 2, 3]


def ended_by(action) -> int:
    """Fork, act in the child, and return the signal that ended it (0: it ended by itself, well)."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def listening() -> StopOnSignal:
    stop = StopOnSignal(checkpoint=None)
    stop._listen(None)
    return stop


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize(("second", "ended"), [(signal.SIGTERM, 0), (signal.SIGINT, signal.SIGINT)])
def test_after_a_signal_ctrl_c_ends_the_process_at_once_and_sigterm_does_not(first, second, ended):
    """SIGTERM comes twice when a scheduler tells the whole group and torchrun passes its own on."""

    def both() -> None:
        stop = listening()
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        os._exit(stop.received != first)

    assert ended_by(both) == ended


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_loader_worker_lives_through_ctrl_c_and_obeys_its_loader(number, ends):
    stop = listening()
    try:
        assert ended_by(lambda: os.kill(os.getpid(), number)) == (number if ends else 0)
        assert stop.received == 0
    finally:
        stop._restore(None)
