# SPDX-License-Identifier: Apache-2.0
"""The process group of the ranks that `torchrun` started, and the synchronisation of their training steps."""

from __future__ import annotations

import logging
import os
import signal
import sys
from datetime import timedelta
from types import FrameType

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import distributed, nn

from scripts.distributed.collectives import all_reduce_sum, is_rank0, num_ranks
from scripts.errors import UserError, first_line


def rank_device() -> torch.device:
    """Return the GPU with this process's local rank, or the CPU if the machine has no GPU.

    Raises:
        UserError: if the node has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"This node has {torch.cuda.device_count()} GPUs, but each of its processes needs one, and this is process "
            f"{local_rank + 1}: lower --nproc_per_node, or add --device cpu."
        )
    return torch.device("cuda", local_rank)


def join_ranks(device: str | torch.device, patience: float = 1800.0) -> None:
    """Form one process group of the processes that `torchrun` started, with gloo on CPUs and NCCL on GPUs.

    Only the first rank logs more than warnings. If a rank dies, its connections close, so the collective operations of
    the other ranks fail at once; torchrun's agent also ends the other processes of its node. If a rank hangs, or its
    node loses power, an operation with it fails after `patience` seconds.

    Args:
        device: device of this rank.
        patience: time-out of one collective operation in seconds, at least 1. Ranks wait for each other during
            validation, so it must be longer than the largest difference in time between two ranks.

    Raises:
        UserError: if `torchrun` did not start this process, the group cannot be formed, or `patience` is too short.
    """
    if distributed.is_initialized():
        return
    if patience < 1:
        raise UserError(f"rank_patience must be at least 1 second, got {patience}.")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise UserError(
            "configs/multi_gpu_train.yaml needs several processes: start them with torchrun --nproc_per_node=N -m "
            "monai.bundle run ..., or leave the file out."
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
        # torchrun uses the same store for all restarts, so it still holds the addresses of ended processes.
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
    signal.signal(signal.SIGTERM, _end_with_message)


def _end_with_message(number: int, frame: FrameType | None) -> None:
    """End this process on SIGTERM, which `torchrun` sends to the other processes of its node when one has died.

    The signal arrives while the failed operation is still being reported, so without this handler the process would
    often end without a message.
    """
    print(
        f"\nError: Process {os.environ['RANK']} received SIGTERM, because another process of this run has ended or the "
        "job was cancelled. Fix what the other one reported and start again with --resume true.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(128 + number)


def leave_ranks() -> None:
    """End the process group when the run is complete. Without a group it does nothing."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def require_group() -> None:
    """Check that processes of `torchrun` have formed a process group; otherwise all would write the same files.

    Raises:
        UserError: if there is no group; the message names the missing configuration file.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ and not distributed.is_initialized():
        raise UserError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but no configuration file joins them: add "
            "'configs/multi_gpu_train.yaml' to --config_file."
        )


def with_common_batch_norm(network: nn.Module) -> nn.Module:
    """Convert the batch norms of a network on a GPU to `SyncBatchNorm`, which uses the cases of all ranks.

    torch has no such layer for CPUs. There the network is returned unchanged, and each rank normalises its own cases.
    """
    on_gpu = all(p.device.type == "cuda" for p in network.parameters())
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if on_gpu and num_ranks() > 1 else network


class RankSynchroniser:
    """Give every rank the gradients and statistics of the whole batch, so that all ranks take the same step.

    `FeatureInferer` shards the network's passes, and every rank computes the loss of all cases from the gathered
    results. Therefore:

    - Gradients of the network are summed over the ranks, because each rank has the gradients of its own cases only.
    - Gradients of the loss's parameters (heads, selectors) are already complete on every rank. All ranks take the first
      rank's copy of them and of the loss's buffers (memory, statistics of heads), so that rounding on different
      hardware cannot make them diverge.
    - Running statistics of norms in the network are averaged over the ranks.

    With one rank nothing happens.

    `DistributedDataParallel` is not suitable: it always divides gradients by the number of ranks, however the loss is
    normalised; it does not support passes outside its `forward`; and it does not synchronise heads and memory.

    Attach it before `GradientGuard`, so that all ranks check the same gradient, and a step with a non-finite value on
    one rank is undone on all ranks.

    Args:
        network: the network whose passes are sharded.
        loss: the loss that every rank computes from all cases.
    """

    def __init__(self, network: nn.Module, loss: nn.Module) -> None:
        self.network, self.loss = network, loss

    def attach(self, engine: Engine) -> None:
        """Copy the first rank's weights at the start, and synchronise after each backward pass."""
        engine.add_event_handler(Events.STARTED, self.copy_from_rank0)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def copy_from_rank0(self, engine: Engine) -> None:
        """Copy the first rank's weights and buffers to all ranks."""
        modules = (self.network, self.loss)
        with torch.no_grad():
            all_reduce_sum([t for m in modules for t in (*m.parameters(), *m.buffers())], contribute=is_rank0())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Synchronise gradients and buffers."""
        if num_ranks() == 1:
            return
        all_reduce_sum(p.grad for p in self.network.parameters() if p.grad is not None)
        loss_gradients = [p.grad for p in self.loss.parameters() if p.grad is not None]
        all_reduce_sum([*loss_gradients, *self.loss.buffers()], contribute=is_rank0())
        statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        all_reduce_sum(statistics)
        for tensor in statistics:
            tensor.div_(num_ranks())
