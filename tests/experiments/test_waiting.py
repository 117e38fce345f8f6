# SPDX-License-Identifier: Apache-2.0
"""Waiting for data, augmentation and threads are measured on every variant in turn."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from scripts.experiments import waiting

TINY = {
    "roi_size": [32, 16, 16],
    "widths": [4, 4, 4, 4],
    "norm": "instance",
    "batch_labelled": 1,
    "batch_unlabelled": 1,
    "device": "cpu",
}


def test_the_share_and_the_time_are_those_of_the_counted_steps(tiny_demo, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(waiting, "FIRST", 1)
    started = time.perf_counter()
    share, seconds = waiting._train(tmp_path / "out", 2, **TINY, dataset_dir=tiny_demo, num_workers=0)
    assert 0 < share < 1 and 0 < 2 * seconds < time.perf_counter() - started


def test_generated_volumes_are_kept_on_disk_or_read_at_each_visit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0)
    files, pairs = {}, []

    def train_small(output: Path, steps: int, **overrides) -> tuple[float, float]:
        pair = _train(output, steps, **{**overrides, **TINY})
        pairs.append(pair)
        files[output.name] = len(list(output.rglob("cache/*.pt")))
        return pair

    _train = waiting._train
    monkeypatch.setattr(waiting, "_train", train_small)
    sizes = ["--cases", "2", "--shape", "32", "24", "12"]
    waiting.main(["disk", "--workers", "0", "--steps", "1", *sizes])
    assert files == {"CT, cache: disk, 0, 0": 2, "CT, read at each visit, 0, 0": 0}
    assert all(0 < share < 1 and seconds > 0 for share, seconds in pairs)


def test_each_variant_has_a_line_with_the_median_of_its_repeats(tmp_path, monkeypatch, capsys) -> None:
    pairs = iter([(0.1, 1.0), (0.01, 5.0), (0.3, 3.0), (0.03, 6.0), (0.2, 2.0), (0.02, 7.0)])
    seen = []

    def train(output: Path, steps: int, **overrides) -> tuple[float, float]:
        seen.append(overrides)
        return next(pairs)

    monkeypatch.setattr(waiting, "_train", train)
    waiting.main(["share", "--dataset", "left_atrium", "--dataset_dir", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| left_atrium | auto | 20.0 | 1.0 |",
        "| left_atrium | 0 | 2.0 | 3.0 |",
    ]
    same = {"files": ["datasets/left_atrium.yaml"], "dataset_dir": tmp_path}
    assert seen == [same | {"num_workers": workers} for workers in ("auto", "0")] * 3


def test_each_transform_is_compared_with_that_of_monai(capsys) -> None:
    words = ["--repeats", "1", "--shape", "24", "20", "18", "--roi_size", "16", "12", "10"]
    waiting.main(["augmentation", *words])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 6
    assert all(float(cell) >= 0 for line in lines for cell in line.strip("| ").split(" | ")[1:])


def test_threads_are_compared_alone_and_beside_a_busy_process(monkeypatch, capsys) -> None:
    monkeypatch.setattr(waiting, "THREADS", {"1 thread": {"A": "1"}, "{n} threads": {"A": "{n}"}})
    asked = []

    def step(environment, _options):
        return lambda: asked.append(environment["A"]) or float(len(asked))

    monkeypatch.setattr(waiting, "_step_seconds", step)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 1})
    waiting.main(["threads", "--repeats", "3"])
    assert asked == ["1", "2"] * 6  # in turn: alone, then beside another process, and again
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1 thread | 5.0 | 7.0 | 1.0 | 1.0 |",
        "| 2 threads | 6.0 | 8.0 | 1.2 | 1.14 |",
    ]


def test_a_busy_process_ends_with_its_block() -> None:
    with waiting.busy_processes(1):
        pass
    with pytest.raises(ZeroDivisionError), waiting.busy_processes(1):
        raise ZeroDivisionError
