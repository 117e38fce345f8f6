# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run, its ranks, exchange. With one process every function here changes nothing.

A training step is divided among the ranks where it is expensive, in the network's passes, and is the same on every rank
everywhere else: `shard_batch` gives each rank its part of a batch, `all_gather_batch` gives all ranks all results.
The two are each other's transpose, as the pair of operators in tensor parallelism (Shoeybi et al., Megatron-LM, 2019):
what is computed from gathered results is computed by every rank alike, so the gradient of one part is what its own rank
needs, and the gradient of a divided batch is gathered again.
"""

from __future__ import annotations

import itertools
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
    """This process among them, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def is_rank0() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def shard_items(items: Sequence[T]) -> list[T]:
    """Every n-th item, so that n ranks together have each of them once.

    With fewer items than ranks each rank has all of them: MONAI's metrics want a case on every rank, and a mean over
    equally many copies of each case is the mean over the cases.
    """
    return list(items) if len(items) < num_ranks() else list(items[rank() :: num_ranks()])


def shard_batch(cases: torch.Tensor) -> torch.Tensor:
    """This rank's part of a batch that every rank holds.

    Rank r has cases r, r + ranks, ..., so that its part is as mixed as the batch, which batch norms see. Parts are
    equally large: where the cases do not divide, the last is repeated, and `all_gather_batch` drops the repetitions.
    The gradient reaches all cases, on every rank.

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
    return _Divide.apply(cases)


def all_gather_batch(part: torch.Tensor, total: int | None = None) -> torch.Tensor:
    """The parts of all ranks in one batch, in the order before `shard_batch`; a part's gradient stays with its rank.

    Args:
        part: `(n, ...)`, of the same shape and type on every rank.
        total: N of `shard_batch`; `None` where nothing was repeated.

    Returns:
        `(N, ...)`.
    """
    if num_ranks() == 1:
        return part
    return _Gather.apply(part)[:total]


@torch.no_grad()
def all_reduce_sum(tensors: Iterable[torch.Tensor], contribute: bool = True) -> None:
    """Replace each tensor by its sum over the ranks, in one message for each type.

    Args:
        tensors: equally many of the same shapes on every rank.
        contribute: a rank that says `False` adds zeros. If only one rank contributes, all receive its values.
    """
    if num_ranks() == 1:
        return
    for _, group in itertools.groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
        members = list(group)
        flat = torch.cat([t.reshape(-1) for t in members])
        flat = flat if contribute else torch.zeros_like(flat)  # not a product: 0 * NaN is NaN
        distributed.all_reduce(flat)
        for tensor, values in zip(members, flat.split([t.numel() for t in members]), strict=True):
            tensor.copy_(values.view_as(tensor))


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Call `compute` on the first rank; every rank returns its result, or raises its error.

    Args:
        compute: its result and its error can be pickled.
    """
    if num_ranks() == 1:
        return compute()
    box: list[Any] = [None, None]
    if is_rank0():
        try:
            box[0] = compute()
        except Exception as error:  # of whatever kind: the others wait for an answer
            box[1] = error
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


@contextmanager
def fork_rng_per_rank(number: int, device: torch.device) -> Iterator[None]:
    """Within it torch draws other numbers on every rank; afterwards its generators stand where they stood before.

    For dropout in divided passes. What ranks compute alike must draw alike, so their generators stay in step.

    Args:
        number: which pass of the step this is, from 0.
        device: where the pass computes.
    """
    if num_ranks() == 1:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(torch.initial_seed(), "pass", number, rank()))
        yield


class _Divide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cases: torch.Tensor) -> torch.Tensor:
        return _own_part(cases)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _all_parts(gradient)


class _Gather(torch.autograd.Function):
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
    # As bytes: neither gloo nor NCCL knows the 16-bit integers that labels may be.
    distributed.all_gather(list(parts.flatten(1).view(torch.uint8)), part.contiguous().flatten().view(torch.uint8))
    return parts.transpose(0, 1).flatten(0, 1)
