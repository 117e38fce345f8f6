# SPDX-License-Identifier: Apache-2.0
"""A run that receives a signal saves a checkpoint before it ends, and can be resumed from it."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from ignite.engine import Events
from torch.utils.data import DataLoader, Dataset

from scripts.training.checkpoint import StopOnSignal
from tests.training.toy_run import Run, assert_same, file_names

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def send_at(run: Run, step: int, number: int) -> Run:
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=step), lambda: os.kill(os.getpid(), number))
    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_current_step_and_the_resumed_run_ends_the_same(tmp_path, caplog, number, workers):
    whole = Run(tmp_path / "whole", 7, interval=100).go()
    folder = tmp_path / "parts"
    before = [signal.getsignal(each) for each in SIGNALS]
    with caplog.at_level(logging.WARNING, "Interruption"), pytest.raises(SystemExit) as stopped:
        send_at(Run(folder, 7, interval=100, workers=workers), 3, number).go()
    assert stopped.value.code == 128 + number
    assert file_names(folder) == ["checkpoint_00000003.pt"]
    assert "checkpoint_00000003.pt" in caplog.text and "--resume" in caplog.text
    assert [signal.getsignal(each) for each in SIGNALS] == before
    resumed = Run(folder, 7, interval=100, resume=True).go()
    assert resumed.steps == [4, 5, 6, 7]
    assert_same(resumed.everything(), whole.everything())


def test_a_signal_in_the_last_step_lets_the_run_complete(tmp_path):
    assert send_at(Run(tmp_path, 3), 3, signal.SIGTERM).go().steps == [1, 2, 3]
    assert file_names(tmp_path)[-1] == "checkpoint_00000003.pt"


def test_an_error_restores_the_signal_handlers(tmp_path):
    before = [signal.getsignal(each) for each in SIGNALS]
    Run(tmp_path, 7, killed_at=4).go_until_killed()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_outside_the_main_thread_a_run_completes_without_signal_handlers(tmp_path):
    """Servers train in threads, where Python refuses to set signal handlers."""
    run = Run(tmp_path, 3)
    thread = threading.Thread(target=run.go)
    thread.start()
    thread.join()
    assert run.steps == [1, 2, 3]


def ended_by(action) -> int:
    """Fork, call `action` in the child, and return the signal that ended it (0 if it exited with status 0)."""
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
    """SIGTERM comes twice when a scheduler sends it to the whole process group and torchrun sends another."""

    def both() -> None:
        stop = listening()
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        os._exit(stop.received != first)

    assert ended_by(both) == ended


class WorkerPid(Dataset):
    """Each item is the process id of the loader's worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_a_loader_worker_survives_ctrl_c_and_ends_on_its_loaders_sigterm():
    stop = listening()
    try:
        items = iter(DataLoader(WorkerPid(), batch_size=None, num_workers=1, prefetch_factor=1))
        worker = next(items)
        assert worker != os.getpid()
        os.kill(worker, signal.SIGINT)
        assert list(items) == [worker] * 3
        items = iter(DataLoader(WorkerPid(), batch_size=None, num_workers=1))
        process = items._workers[0]
        next(items)
        process.terminate()
        process.join(10)
        assert process.exitcode is not None
        assert stop.received == 0
    finally:
        stop._restore(None)
