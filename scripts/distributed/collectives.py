# SPDX-License-Identifier: Apache-2.0
"""Collective operations between the ranks (processes) of a run. With one process every function is the identity.

Only the expensive passes of the network are divided among the ranks; every rank computes the rest of a step in the same
way. `shard_batch` gives each rank its part of a batch, and `all_gather_batch` gives all ranks the results of all parts.
Each of the two is the gradient of the other, like the pair of operators in tensor parallelism (Shoeybi et al.,
Megatron-LM, 2019). Every rank computes the same loss from the gathered results, so each keeps the gradient of its own
part, and the gradients of a sharded batch are gathered.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from scripts.seeding import derive_seed

T = TypeVar("T")


def num_ranks() -> int:
    """Number of processes, 1 outside a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Index of this process, counted from 0; 0 outside a process group."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def num_local_ranks() -> int:
    """Number of processes of the run on this machine, which share its cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def is_rank0() -> bool:
    """Whether this is the first process, the only one that writes files."""
    return rank() == 0


def shard_items(items: Sequence[T]) -> list[T]:
    """Return this rank's share of a list: the items rank, rank + n, ... for n ranks, so that each item is on one rank.

    With fewer items than ranks, each rank gets all of them, because MONAI's metrics need a case on every rank. The mean
    does not change if there are equally many copies of each case.
    """
    return list(items) if len(items) < num_ranks() else list(items[rank() :: num_ranks()])


def shard_batch(cases: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a batch that every rank holds.

    Rank r gets the cases r, r + ranks, ..., so that each part mixes labelled and unlabelled cases like the whole batch,
    which matters for batch norm. All parts have the same size: if the number of cases is not a multiple of the number
    of ranks, the last case is repeated, and `all_gather_batch` drops the repetitions. In the backward pass, every rank
    receives the gradient of all cases.

    Args:
        cases: `(N, ...)`, N at least 1, the same on every rank.

    Returns:
        `(ceil(N / ranks), ...)`.
    """
    if num_ranks() == 1:
        return cases
    missing = -len(cases) % num_ranks()
    if missing:
        cases = torch.cat([cases, cases[-1:].expand(missing, *cases.shape[1:])])
    return _Shard.apply(cases)


def all_gather_batch(part: torch.Tensor, total: int | None = None) -> torch.Tensor:
    """Join the parts of all ranks in the original order; each rank receives the gradient of its own part.

    Args:
        part: `(n, ...)`, of the same shape and type on every rank.
        total: size N of the batch before `shard_batch`, to drop repeated cases; `None` if no case was repeated.

    Returns:
        `(N, ...)`.
    """
    if num_ranks() == 1:
        return part
    return _AllGather.apply(part)[:total]


def all_gather_items(items: list[T]) -> list[T]:
    """Return the items of all ranks, in the order of the ranks. Items are pickled."""
    if num_ranks() == 1:
        return items
    parts: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@torch.no_grad()
def all_reduce_sum(tensors: Iterable[torch.Tensor], contribute: bool = True) -> None:
    """Replace each tensor by its sum over the ranks, with one operation per dtype.

    Args:
        tensors: tensors of the same number, shapes and dtypes on every rank.
        contribute: `False` adds zeros instead of this rank's values. If only one rank contributes, all ranks receive
            its values.
    """
    if num_ranks() == 1:
        return
    for _, group in itertools.groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
        members = list(group)
        flat = torch.cat([t.reshape(-1) for t in members])
        flat = flat if contribute else torch.zeros_like(flat)  # no multiplication, because 0 * NaN is NaN
        distributed.all_reduce(flat)
        for tensor, values in zip(members, flat.split([t.numel() for t in members]), strict=True):
            tensor.copy_(values.view_as(tensor))


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Call `compute` on the first rank only; every rank returns its result or raises its error.

    Args:
        compute: a function whose result and errors can be pickled.
    """
    if num_ranks() == 1:
        return compute()
    box: list[Any] = [None, None]
    if is_rank0():
        try:
            box[0] = compute()
        except Exception as error:  # any error, because the other ranks wait for an answer
            box[1] = error
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


@contextmanager
def fork_rng_per_rank(number: int, device: torch.device) -> Iterator[None]:
    """Draw different random numbers on each rank inside the context; restore torch's generators afterwards.

    Use it for dropout in sharded passes. All other computations are the same on all ranks and must draw the same
    numbers, so the generators must agree again after such a pass.

    Args:
        number: index of the pass within the step, from 0.
        device: device of the pass.
    """
    if num_ranks() == 1:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(torch.initial_seed(), "pass", number, rank()))
        yield


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cases: torch.Tensor) -> torch.Tensor:
        return _own_part(cases)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _all_parts(gradient)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        return _all_parts(part)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _own_part(gradient)


def _own_part(cases: torch.Tensor) -> torch.Tensor:
    return cases[rank() :: num_ranks()].clone()  # an autograd function may not return a view


def _all_parts(part: torch.Tensor) -> torch.Tensor:
    parts = part.new_empty((num_ranks(), *part.shape))
    # Sent as bytes, because neither gloo nor NCCL supports 16-bit integers, which labels may have.
    distributed.all_gather(list(parts.flatten(1).view(torch.uint8)), part.contiguous().flatten().view(torch.uint8))
    return parts.transpose(0, 1).flatten(0, 1)
