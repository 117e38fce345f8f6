# SPDX-License-Identifier: Apache-2.0
"""Join the processes that `torchrun` started, and leave them."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import torch
from torch import distributed

from scripts.engine.rank_watch import RankWatch, watch_termination
from scripts.errors import BundleError
from scripts.functional.ranks import is_first_rank

TIMEOUT = timedelta(minutes=30)
"""Of one exchange. Long, as ranks may rightly wait for each other's validation; the watch finds a dead one sooner."""

_watch: RankWatch | None = None


def rank_device() -> torch.device:
    """The GPU with this process's number on its node, or the CPU where there is none.

    Raises:
        BundleError: if the node has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = int(os.environ.get("LOCAL_RANK", 0))
    if place >= torch.cuda.device_count():
        raise BundleError(
            f"This node has {torch.cuda.device_count()} GPUs, but process {place + 1} of it wants one of its own: "
            "start no more processes by --nproc_per_node, or add --device cpu."
        )
    return torch.device("cuda", place)


def join_ranks(device: str | torch.device, patience: float = 30.0) -> None:
    """Make one group of the processes that `torchrun` started; gloo on a CPU, NCCL on GPUs.

    Only the first rank logs more than warnings. A rank that ends or hangs is noticed by the others, see `RankWatch`.

    Args:
        device: where this rank computes.
        patience: seconds without a sign of life after which a rank is given up, at least 5.

    Raises:
        BundleError: if `torchrun` did not start this process, the group cannot be formed, or `patience` is too short.
    """
    global _watch
    if distributed.is_initialized():
        return
    if patience < 5:
        raise BundleError(f"rank_patience must be at least 5 seconds, got {patience}.")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise BundleError(
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
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"The processes of this run cannot reach each other at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({str(error).splitlines()[0]}): check the address in the torchrun "
            "command and that all of them were started."
        ) from error
    if not is_first_rank():
        logging.disable(logging.INFO)
    watch_termination()
    _watch = RankWatch(store.clone(), rank, count, patience)
    _watch.start()


def leave_ranks() -> None:
    """End the group when the run is complete; the others are told, so that nobody is missed. Alone it does nothing."""
    global _watch
    if _watch is not None:
        _watch.leave()
        _watch = None
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def require_group() -> None:
    """Refuse processes of `torchrun` that know nothing of each other: they would write into the same files.

    Raises:
        BundleError: naming the configuration file that is missing.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ and not distributed.is_initialized():
        raise BundleError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but nothing joins them: add "
            "'configs/multi_gpu_train.yaml' to --config_file."
        )
