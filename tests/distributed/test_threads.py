# SPDX-License-Identifier: Apache-2.0
"""Threads follow the cores that a container grants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.distributed.threads import available_cores, limit_threads, one_thread


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def granted(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "6400000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_torch_uses_no_more_threads_than_the_container_grants(files, used, tmp_path, caplog) -> None:
    with caplog.at_level("INFO"):
        limit_threads(granted(tmp_path, files))
    assert torch.get_num_threads() == used
    assert f" {used} threads" in caplog.text


def test_omp_num_threads_wins_over_the_quota(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    limit_threads(granted(tmp_path, {"cpu.max": "300000 100000"}))
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 3), ("150000 100000", 2), ("800000 100000", 3)])
def test_available_cores_are_those_of_the_affinity_mask_and_the_quota(quota, cores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert available_cores(granted(tmp_path, {"cpu.max": quota})) == cores


def test_one_thread_computes_and_the_others_come_back() -> None:
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 4
