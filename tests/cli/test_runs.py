# SPDX-License-Identifier: Apache-2.0
"""Commands that this process runs get the time to save their state when it has to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.cli.runs import run_process

SAVES = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    time.sleep(0.5)
    Path("saved").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def command(tmp_path: Path) -> Sequence[str]:
    (tmp_path / "save.py").write_text(SAVES)
    return [sys.executable, "save.py"]


def when_ready(folder: Path, number: int) -> None:
    """Send a signal to this process, and only to it, once the command listens."""
    while not (folder / "ready").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_this_process_after_the_command_has_saved(command, tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    threading.Thread(target=when_ready, args=(tmp_path, number)).start()
    with pytest.raises(SystemExit) as ended:
        run_process(command, cwd=tmp_path)
    assert ended.value.code == 128 + number
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(number) is before


def test_a_command_that_takes_too_long_saves_too(command, tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_process(command, timeout=3, cwd=tmp_path)
    assert (tmp_path / "saved").exists()


def test_the_exit_code_of_a_finished_command_is_returned(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        done = run_process([sys.executable, "-c", "print('text'); raise SystemExit(3)"], stdout=log)
    assert done.returncode == 3
    assert (tmp_path / "log").read_text() == "text\n"
