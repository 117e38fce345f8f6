# SPDX-License-Identifier: Apache-2.0
"""The command that times patches."""

from __future__ import annotations

import time

from scripts.benchmarks.patch_cost import main, seconds


def test_a_line_for_each_batch_size(capsys):
    main(["--roi_size", "16", "16", "32", "--base_filters", "2", "--batches", "1", "3", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    assert all(float(word) >= 0 for line in lines[2:] for word in line.split())


def test_the_first_call_is_not_counted(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 25.0])
    calls = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert seconds(lambda: calls.append(1), repeats=3) == 3.0
    assert len(calls) == 4
