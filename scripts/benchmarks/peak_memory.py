# SPDX-License-Identifier: Apache-2.0
"""Time and most memory that a command takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def measure_command(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds and MiB that `python -m WORDS` takes, run in `folder`.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, "-m", *words]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder)
    while process.poll() is None:
        peak = max(peak, _peak_kib(process.pid))
        time.sleep(0.1)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, peak / 2**10


def _peak_kib(process: int) -> int:
    """Most memory that a process has held so far, KiB; 0 when it has ended.

    Not `getrusage`: there a child begins with the peak of its parent, and all children count together.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
