# SPDX-License-Identifier: Apache-2.0
"""Join the processes that `torchrun` started, keep their networks in step, and leave them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import distributed, nn

from scripts.distributed.collectives import all_reduce_sum, is_rank0, num_ranks
from scripts.errors import UserError, first_line


def rank_device() -> torch.device:
    """The GPU with this process's number on its node, or the CPU where there is none.

    Raises:
        UserError: if the node has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = int(os.environ.get("LOCAL_RANK", 0))
    if place >= torch.cuda.device_count():
        raise UserError(
            f"This node has {torch.cuda.device_count()} GPUs, but process {place + 1} of it wants one of its own: "
            "start no more processes by --nproc_per_node, or add --device cpu."
        )
    return torch.device("cuda", place)


def join_ranks(device: str | torch.device, patience: float = 1800.0) -> None:
    """Form one process group of the processes that `torchrun` started; gloo on CPUs, NCCL on GPUs.

    Only the first rank logs more than warnings. If a rank dies, its connections close, so the exchanges of the others
    fail at once; torchrun's agent also ends the other processes of its node. A rank that hangs, or whose node lost
    power, is noticed when an exchange with it has taken `patience` seconds.

    Args:
        device: where this rank computes.
        patience: time-out of one exchange in seconds, at least 1. Ranks wait for each other's validation, so it must
            be longer than the longest difference between two ranks.

    Raises:
        UserError: if `torchrun` did not start this process, the group cannot be formed, or `patience` is too short.
    """
    if distributed.is_initialized():
        return
    if patience < 1:
        raise UserError(f"rank_patience must be at least 1 second, got {patience}.")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            "configs/multi_gpu_train.yaml needs several processes: start with torchrun --nproc_per_node=N -m "
            "monai.bundle run ..., or leave the file out."
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
        # torchrun keeps one store for all its restarts, with the addresses of processes that are gone.
        store = distributed.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=patience)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes of this run cannot reach each other at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({first_line(error)}): check the address in the torchrun command and "
            "that all of them were started."
        ) from error
    if not is_rank0():
        logging.disable(logging.INFO)


def leave_ranks() -> None:
    """End the process group when the run is complete. Without a group it does nothing."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def require_group() -> None:
    """Refuse processes of `torchrun` that know nothing of each other: they would write into the same files.

    Raises:
        UserError: naming the configuration file that is missing.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ and not distributed.is_initialized():
        raise UserError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but nothing joins them: add "
            "'configs/multi_gpu_train.yaml' to --config_file."
        )


def with_common_batch_norm(network: nn.Module) -> nn.Module:
    """Let the batch norms of a network on a GPU use the statistics of all ranks' cases (`SyncBatchNorm`).

    torch has none for CPUs: there the network stays as it is, and each rank normalises its own cases.
    """
    on_gpu = all(p.device.type == "cuda" for p in network.parameters())
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if on_gpu and num_ranks() > 1 else network


class RankSynchroniser:
    """Give every rank the gradients and statistics of the whole batch, so that all take the same step.

    `FeatureInferer` shards the network's passes, and every rank computes the loss of all cases from the gathered
    results.
    So the network's gradient is the sum over ranks, as each saw its own cases go through the network; the loss's
    parameters (heads, selectors) have the whole gradient on every rank. Of these, and of the loss's buffers (memory,
    statistics of heads), all take the first rank's copy, so that not even different hardware lets them drift apart.
    Running statistics of norms in the network are averaged over ranks. With one rank nothing happens.

    `DistributedDataParallel` is not used: it divides gradients by the number of ranks whatever the loss normalises by,
    does not know passes outside its `forward`, and has no part in heads and memory.

    Attach it before `GradientGuard`: all ranks then judge the same gradient, and a step with a non-finite value on one
    of them is undone on all.

    Args:
        network: whose passes are divided.
        loss: what every rank computes alike.
    """

    def __init__(self, network: nn.Module, loss: nn.Module) -> None:
        self.network, self.loss = network, loss

    def attach(self, engine: Engine) -> None:
        """Start from the same weights; act when the gradients of each iteration are there."""
        engine.add_event_handler(Events.STARTED, self.start_alike)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def start_alike(self, engine: Engine) -> None:
        """All ranks take the first one's weights and buffers."""
        modules = (self.network, self.loss)
        with torch.no_grad():
            all_reduce_sum([t for m in modules for t in (*m.parameters(), *m.buffers())], contribute=is_rank0())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Exchange gradients and buffers."""
        if num_ranks() == 1:
            return
        all_reduce_sum(p.grad for p in self.network.parameters() if p.grad is not None)
        of_the_loss = [p.grad for p in self.loss.parameters() if p.grad is not None]
        all_reduce_sum([*of_the_loss, *self.loss.buffers()], contribute=is_rank0())
        statistics = list(_statistics(self.network))
        all_reduce_sum(statistics)
        for tensor in statistics:
            tensor.div_(num_ranks())


def _statistics(network: nn.Module) -> Iterator[torch.Tensor]:
    return (buffer for buffer in network.buffers() if buffer.is_floating_point())
