# SPDX-License-Identifier: Apache-2.0
"""Variants are measured in turn, and the table shows their medians."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.experiments import starting


def test_threads_are_compared_alone_and_beside_a_busy_process(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(starting, "THREADS", {"1 thread": {"A": "1"}, "{n} threads": {"A": "{n}"}})
    asked = []

    def step(environment, _options):
        return lambda: asked.append(environment["A"]) or float(len(asked))

    monkeypatch.setattr(starting, "_step_seconds", step)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 1})
    starting.main(["threads", "--repeats", "3", "--json", str(tmp_path / "out.json")])
    assert asked == ["1", "2"] * 6  # in turn: alone, then beside another process, and again
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1 thread | 5 s (1.00) | 7 s (1.00) |",
        "| 2 threads | 6 s (1.20) | 8 s (1.14) |",
    ]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["seconds"]["alone"]["1 thread"] == [1.0, 5.0, 9.0] and "torch" in written["versions"]


def test_start_up_runs_every_command_once_before_it_is_measured(monkeypatch, tmp_path: Path, capsys) -> None:
    runs = []
    monkeypatch.setattr(starting, "run", lambda root, words: runs.append((root, words[1])) or (2.0, 1.0))
    starting.main(["start-up", "--repeats", "2", "--other", str(tmp_path), "--images", "scans"])
    commands = runs[: len(runs) // 3]
    assert len(commands) == 7 and runs == commands * 3
    assert {root for root, _ in commands} == {starting.ROOT, tmp_path}
    assert "| front door, other | 2 s (1.00) | 1 s (1.00) |" in capsys.readouterr().out


def test_a_busy_process_ends_with_its_block() -> None:
    with starting.busy_processes(1):
        pass
    with pytest.raises(ZeroDivisionError), starting.busy_processes(1):
        raise ZeroDivisionError


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        starting.run(Path(sys.prefix), ["-c", "raise SystemExit(3)"])
