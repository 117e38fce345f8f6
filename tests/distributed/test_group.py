# SPDX-License-Identifier: Apache-2.0
"""The process group, and the synchronisation of a training step."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from scripts.distributed.collectives import all_reduce_sum, rank
from scripts.distributed.group import (
    RankSynchroniser,
    join_ranks,
    leave_ranks,
    rank_device,
    require_group,
    with_common_batch_norm,
)
from scripts.errors import UserError, root_user_error
from scripts.training.guard import GradientGuard
from tests.rank_processes import run_ranks, start_ranks


@pytest.fixture
def outside_torchrun(monkeypatch) -> None:
    """Without the variables that torchrun sets."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("outside_torchrun")
def test_joining_without_torchrun_is_refused() -> None:
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        join_ranks("cpu")


def test_a_patience_below_one_second_is_refused() -> None:
    with pytest.raises(UserError, match="rank_patience"):
        join_ranks("cpu", patience=0.5)


def wait_for_the_other(hanging_rank: int) -> str:
    """What a user reads if the other rank does not answer within `patience`."""
    join_ranks("cpu", patience=1)
    if rank() == hanging_rank:
        time.sleep(4)
    try:
        all_reduce_sum([torch.ones(1)])
    except RuntimeError as error:
        return str(root_user_error(error))
    return "the exchange succeeded"


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_rank_that_hangs_for_longer_than_the_patience_ends_the_others_with_a_user_error(hanging, tmp_path) -> None:
    messages = run_ranks(2, tmp_path / "ranks", wait_for_the_other, hanging, join=False)
    assert "--resume true" in messages[1 - hanging]


def join_and_sleep(folder: Path) -> None:
    join_ranks("cpu")
    (folder / f"joined_{rank()}").touch()
    time.sleep(60)


def test_sigterm_ends_a_rank_with_a_message(tmp_path, capfd) -> None:
    processes = start_ranks(2, tmp_path, join_and_sleep, tmp_path, join=False)
    while len(list(tmp_path.glob("joined_*"))) < 2:
        time.sleep(0.01)
    for process in processes:
        process.terminate()
        process.join(10)
        assert process.exitcode == 128 + signal.SIGTERM
    assert capfd.readouterr().err.count("Error:") == 2


@pytest.mark.usefixtures("outside_torchrun")
def test_processes_without_a_group_are_refused(monkeypatch) -> None:
    require_group()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"multi_gpu_train\.yaml"):
        require_group()


@pytest.mark.usefixtures("outside_torchrun")
def test_each_process_of_a_node_gets_a_gpu_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc_per_node"):
        rank_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_device() == torch.device("cpu")


def test_leaving_without_a_group_does_nothing() -> None:
    leave_ranks()


# ------------------------------------------------------------------ one step of several ranks


class Head(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        self.register_buffer("rows", torch.zeros(2))
        self.register_buffer("counts", torch.zeros(1, dtype=torch.int64))


def one_step(bad_rank: int | None = None) -> dict:
    """A step whose gradients and buffers hold the rank that they come from: 1 on the first, 2 on the second."""
    number = float(rank() + 1)
    network, head = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)), Head()
    with torch.no_grad():
        for parameter in (*network.parameters(), *head.parameters()):
            parameter.fill_(number)

    def step(engine: Engine, batch: object) -> dict:
        for parameter in (network[0].weight, head.weight):
            parameter.grad = torch.full_like(parameter, torch.nan if rank() == bad_rank else number)
        network[1].running_mean.fill_(number)
        head.rows.fill_(number)
        head.counts.fill_(rank() + 1)
        engine.state.output = {Keys.LOSS: torch.zeros(()), Keys.PRED: None}
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        return engine.state.output

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    engine.network, engine.loss_function = network, head  # as a trainer has them
    guard = GradientGuard()
    RankSynchroniser(network, head).attach(engine)
    start = {}
    engine.add_event_handler(
        Events.STARTED, lambda: start.update(weights=[float(network[0].weight), float(head.weight)])
    )
    guard.attach(engine)
    engine.run([0])
    return {
        "start": start["weights"],
        "gradients": [None if p.grad is None else p.grad.item() for p in (network[0].weight, head.weight)],
        "unused": network[1].weight.grad,
        "statistics": network[1].running_mean.item(),
        "memory": (head.rows.tolist(), head.counts.tolist()),
        "undone": guard.undone,
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_ranks(2, tmp_path_factory.mktemp("two") / "ranks", one_step)


def test_all_ranks_start_with_the_weights_of_rank_0(two) -> None:
    assert [result["start"] for result in two] == [[1.0, 1.0]] * 2


def test_gradients_of_the_network_are_summed_and_those_of_the_loss_come_from_rank_0(two) -> None:
    assert [result["gradients"] for result in two] == [[3.0, 1.0]] * 2
    assert [result["unused"] for result in two] == [None] * 2


def test_statistics_are_averaged_and_the_memory_comes_from_rank_0(two) -> None:
    assert [result["statistics"] for result in two] == [1.5] * 2
    assert [result["memory"] for result in two] == [([1.0, 1.0], [1])] * 2


def test_a_gradient_that_is_not_finite_on_one_rank_undoes_the_step_on_all(tmp_path) -> None:
    for result in run_ranks(2, tmp_path / "ranks", one_step, 1):
        assert result["undone"]
        assert result["gradients"] == [None, None]
        assert (result["statistics"], result["memory"]) == (0.0, ([0.0, 0.0], [0])), "buffers are put back"


def test_one_process_keeps_its_gradients() -> None:
    result = one_step()
    assert result["gradients"] == [1.0, 1.0]
    assert result["statistics"] == 1.0


def test_batch_norm_is_not_converted_on_a_cpu_or_in_one_process() -> None:
    """SyncBatchNorm of torch refuses tensors on a CPU."""
    network = nn.Sequential(nn.BatchNorm3d(2))
    assert with_common_batch_norm(network) is network
    assert type(network[0]) is nn.BatchNorm3d
