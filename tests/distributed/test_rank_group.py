# SPDX-License-Identifier: Apache-2.0
"""Joining what torchrun started: the mistakes that can be made."""

from __future__ import annotations

import pytest
import torch

from scripts.distributed.group import join_ranks, leave_ranks, rank_device, require_group
from scripts.errors import UserError


@pytest.fixture(autouse=True)
def outside_torchrun(monkeypatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_file_for_several_processes_asks_for_torchrun() -> None:
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        join_ranks("cpu")


def test_a_patience_that_any_pause_exhausts_is_refused() -> None:
    with pytest.raises(UserError, match="rank_patience"):
        join_ranks("cpu", patience=1)


def test_processes_that_nothing_joins_are_refused(monkeypatch) -> None:
    require_group()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"multi_gpu_train\.yaml"):
        require_group()


def test_each_process_of_a_node_has_a_gpu_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="2 GPUs"):
        rank_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_device() == torch.device("cpu")


def test_leaving_without_a_group_does_nothing() -> None:
    leave_ranks()
