# SPDX-License-Identifier: Apache-2.0
"""Each measurement runs on generated data and prints its results."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from scripts.dataset_setup import fingerprint
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request
from scripts.experiments import load
from tests import forked_command

SHAPE = ("--shape", "20", "18", "16")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run commands in forked processes, because a new process needs seconds for its imports."""

    def measure(words: list[str]) -> dict[str, float]:
        done = forked_command.run(words, tmp_path / "streams")
        assert done.code == 0, done.errors
        return {"time s": 1.5, "peak MiB": 2}

    monkeypatch.setattr(load, "measure_command", measure)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (
            (
                "large-volume",
                "--shape",
                "20",
                "24",
                "28",
                "--voxel",
                "2",
                "2",
                "2",
                "--width",
                "2",
            ),
            ["| 20 x 24 x 28 | 1.5 | 2 |"],
        ),
        (
            ("many-volumes", "--volumes", "6", "--labelled", "5", *SHAPE),
            ["| 6 | 5 | 20 x 18 x 16 | 1.5 | 2 |"],
        ),
        (
            ("many-checks", "--cases", "2", "6", *SHAPE),
            [f"| {n} | 20 x 18 x 16 | 1.5 | 2 |" for n in (2, 6)],
        ),
        (
            ("many-evaluations", "--cases", "1", "3", *SHAPE),
            [f"| {n} | 20 x 18 x 16 | 1.5 | 2 |" for n in (1, 3)],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_runs_on_generated_data(words, printed, forked, capsys) -> None:
    load.main(words)
    assert capsys.readouterr().out.splitlines()[2:] == printed


def test_time_and_peak_memory_of_a_command_are_measured() -> None:
    cost = load.measure_command(["timeit", "-n", "1", "-r", "1", "a = bytearray(2**28); sum(range(30_000_000))"])
    assert 0.2 <= cost["time s"] < 60 and cost["peak MiB"] > 256


def test_training_prints_a_line_for_each_step_and_number_of_workers(capfd, monkeypatch) -> None:
    monkeypatch.setattr(load, "grown", lambda first, last: [])  # memory is stable only after the first steps
    load.main(["long-training", "--steps", "1", "3", "--workers", "1"])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    head, *rows = [line.strip("| ").split(" | ") for line in lines]
    rows = [dict(zip(head, row, strict=True)) for row in rows[1:]]
    assert [(row["workers"], row["step"], row["processes"]) for row in rows] == [("1", "1", "2"), ("1", "3", "2")]
    assert all(float(row["memory MiB"]) > float(row["in workers MiB"]) > 0 for row in rows)


def test_growth_above_two_per_cent_and_any_new_file_or_thread_is_reported() -> None:
    def row(memory: float, workers_memory: float, files: int, threads: int) -> dict[str, float]:
        return {"memory MiB": memory, "in workers MiB": workers_memory, "open files": files, "threads": threads,
                "processes": 3}  # fmt: skip

    first = row(400.0, 100.0, 40, 9)
    assert load.grown(first, row(405.0, 104.0, 40, 9)) == []
    assert len(load.grown(first, row(406.0, 105.0, 40, 9))) == 1
    assert len(load.grown(first, row(400.0, 100.0, 41, 10))) == 2


def test_patch_cost_prints_a_line_for_each_batch_size_and_layout(capsys) -> None:
    words = [
        "patch-cost",
        "--roi_size",
        "16",
        "16",
        "32",
        "--base_filters",
        "2",
        "--batches",
        "1",
        "3",
    ]
    load.main([*words, "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    layouts = ["contiguous", "channels-last"]
    assert [row[:2] for row in rows] == [[size, layout] for size in ("1", "3") for layout in layouts]
    assert all(float(word) >= 0 for row in rows for word in row[2:])


def test_calls_take_turns_and_the_first_turn_is_not_counted(monkeypatch) -> None:
    seconds = {"a": [9.0, 1.0, 5.0, 3.0], "b": [9.0, 2.0, 2.0, 7.0]}
    clock, order = [0.0], []

    def call(name):
        order.append(name)
        clock[0] += seconds[name][order.count(name) - 1]

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    medians = load.median_seconds({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=3)
    assert medians == {"a": 3.0, "b": 2.0} and order == ["a", "b"] * 4


def traced_peak(folder: Path) -> int:
    """Peak memory of `new_dataset` in bytes."""
    tracemalloc.start()
    new_dataset(Request(folder, "many", config=folder / "many.yaml", force=True), show=lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_new_dataset_does_not_grow_with_the_number_of_volumes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "VOXELS_PER_CASE", 100)  # the sample of intensities grows up to 40 cases
    shape = (64, 64, 48)  # 0.4 MB as int16
    for number in (5, 15):
        load.write_volumes(tmp_path / str(number), number, number, shape)
    # The minimum of two runs, because the first one imports and tables of the interpreter grow by megabytes.
    few, many = (min(traced_peak(tmp_path / str(number)) for _ in range(2)) for number in (5, 15))
    assert many - few < 10 * 64 * 64 * 48 * 2 / 3, "10 more volumes take less than a third of their size"
