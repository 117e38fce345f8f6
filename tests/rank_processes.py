# SPDX-License-Identifier: Apache-2.0
"""Run a function in several forked processes that form a gloo group, and return what each of them returned."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

# A forked process has everything imported already: a test of two ranks takes a fraction of a second.
FORK = multiprocessing.get_context("fork")


def start_ranks(
    count: int, folder: Path, function: Callable[..., Any], *arguments: Any, join: bool = True
) -> list[multiprocessing.Process]:
    """Start processes that run `function(*arguments)`; rank r saves its result or its error as `r.pt`.

    Args:
        count: number of ranks.
        folder: an empty folder for results and for the file through which the ranks find each other.
        function: called by each of them.
        arguments: its arguments.
        join: `True` to form a group first; `False` to set the environment variables of torchrun instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = None if join else distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port if store is not None else 0
    processes = [
        FORK.Process(target=_work, args=(r, count, folder, port, function, arguments), daemon=True)
        for r in range(count)
    ]
    for process in processes:
        process.store = store  # kept alive as long as the processes need it
        process.start()
    return processes


def run_ranks(count: int, folder: Path, function: Callable[..., Any], *arguments: Any, join: bool = True) -> list[Any]:
    """The results of `function` on all ranks; an error on any rank fails the test."""
    for process in start_ranks(count, folder, function, *arguments, join=join):
        process.join(120)
        assert process.exitcode is not None, f"a rank hangs: {function.__name__}"
    results = [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(count)]
    for number, (_, error) in enumerate(results):
        assert error is None, f"rank {number}: {error}"
    return [value for value, _ in results]


def _work(
    rank: int, count: int, folder: Path, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    # Garbage of the parent may belong to threads that were not forked: it must not be collected here.
    gc.freeze()
    torch.set_num_threads(1)
    value, error = None, None
    try:
        if port == 0:
            where = f"file://{folder / 'meeting'}"
            limit = timedelta(seconds=60)
            distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=count, timeout=limit)
        else:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {name: str(number) for name, number in numbers.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        value = function(*arguments)
    except BaseException:
        error = traceback.format_exc()
    torch.save((value, error), folder / f"{rank}.pt")
    os._exit(0)  # without the clean-up of pytest and of the parent
