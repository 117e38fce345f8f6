# SPDX-License-Identifier: Apache-2.0
"""The measurement of many volumes runs, and memory does not grow with their number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from scripts.benchmarks.many_volumes import main, make_volumes, measure
from scripts.dataset_setup import fingerprint


def test_the_command_prints_what_it_measured(capsys) -> None:
    main(["--volumes", "6", "--labelled", "5", "--shape", "20", "18", "16"])
    printed = capsys.readouterr().out
    assert "6: 5 with label, 1 without" in printed
    assert "6 volumes of 20 x 18 x 16 voxels, 5 labelled:" in printed


def traced_peak(folder: Path) -> int:
    """Bytes; the interpreter's own tables grow now and then, by megabytes, in one of several measurements."""
    tracemalloc.start()
    measure(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_three_times_the_volumes_take_no_more_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "VOXELS_A_CASE", 100)  # the sample of intensities grows, up to that of 40 cases
    shape = (64, 64, 48)  # 0.4 MB as int16
    peaks = []
    for number in (8, 24):
        make_volumes(tmp_path / str(number), number, number, shape)
        measure(tmp_path / str(number))  # what is imported on first use is not counted
        peaks.append(min(traced_peak(tmp_path / str(number)) for _ in range(2)))
    assert peaks[1] - peaks[0] < 16 * 64 * 64 * 48 * 2 / 3  # of the 16 volumes more, not even a third
