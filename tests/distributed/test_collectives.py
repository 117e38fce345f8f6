# SPDX-License-Identifier: Apache-2.0
"""Exchanges between two ranks, compared with the results of one process."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from scripts.distributed.collectives import (
    all_gather_batch,
    all_gather_items,
    all_reduce_sum,
    broadcast_from_rank0,
    fork_rng_per_rank,
    is_rank0,
    num_ranks,
    rank,
    shard_batch,
    shard_items,
)
from tests.rank_processes import run_ranks

CASES = 5  # not a multiple of two ranks


def loss_of(batch: torch.Tensor, weight: torch.Tensor, sharded: bool) -> torch.Tensor:
    """Two passes of a "network", the second on cases that depend on the first, and a loss that mixes all cases."""

    def network(cases):
        part = shard_batch(cases) if sharded else cases
        result = (part @ weight).tanh()
        return all_gather_batch(result, len(cases)) if sharded else result

    first = network(batch)
    second = network(batch + first @ torch.tensor([[1.0, -0.5, 0.25], [0.5, 2.0, -1.0]], dtype=torch.float64))
    return normalize(second, dim=0).square().sum() + (first.T @ second).sum().exp()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    return draw(CASES, 3), draw(3, 2)


def collect() -> dict:
    batch, weight = inputs()
    loss = loss_of(batch, weight, sharded=True)
    loss.backward()
    all_reduce_sum([weight.grad])
    all_reduce_sum([torch.nn.Parameter(torch.ones(2))])  # a leaf that requires a gradient is replaced in place too
    mixed = [torch.full((2,), 1.0 + rank()), torch.tensor([rank() + 1]), torch.full((2, 1), 10.0 * (rank() + 1))]
    all_reduce_sum(mixed)
    of_first = [torch.tensor([7.0 if is_rank0() else math.nan])]
    all_reduce_sum(of_first, contribute=is_rank0())
    return {
        "rank": (rank(), num_ranks(), is_rank0()),
        "part": shard_batch(torch.arange(CASES)),
        "whole": all_gather_batch(shard_batch(torch.arange(CASES)), CASES),
        "labels": all_gather_batch(torch.tensor([[-1, 300 + rank()]], dtype=torch.int16)),
        "loss": loss.detach(),
        "gradients": (batch.grad, weight.grad),
        "mixed": mixed,
        "of_first": of_first,
        "items": (shard_items("abcde"), shard_items("a")),
        "of_all": all_gather_items(["a"] * rank() + ["last"]),
        "from_first": broadcast_from_rank0(rank),
        "error": message_of_error(),
        "random": random_numbers(),
    }


def message_of_error() -> str:
    def fail():
        raise ValueError(f"raised on rank {rank()}")

    with pytest.raises(ValueError) as caught:
        broadcast_from_rank0(fail)
    return str(caught.value)


def random_numbers() -> list[float]:
    torch.manual_seed(11)
    numbers = []
    for number in (0, 1):
        with fork_rng_per_rank(number, torch.device("cpu")):
            numbers.append(float(torch.rand(())))
    return [*numbers, float(torch.rand(()))]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_ranks(2, tmp_path_factory.mktemp("two") / "ranks", collect)


def test_each_rank_knows_its_number(two) -> None:
    assert [result["rank"] for result in two] == [(0, 2, True), (1, 2, False)]


def test_cases_are_sharded_in_turn_and_gathered_in_their_order_without_the_repeated_case(two) -> None:
    assert [result["part"].tolist() for result in two] == [[0, 2, 4], [1, 3, 4]]
    assert [result["whole"].tolist() for result in two] == [[0, 1, 2, 3, 4]] * 2


def test_16_bit_labels_are_gathered(two) -> None:
    for result in two:
        assert result["labels"].dtype == torch.int16
        assert result["labels"].tolist() == [[-1, 300], [-1, 301]]


def test_sharded_passes_have_the_loss_and_gradients_of_one_process(two) -> None:
    """The second pass depends on the first, so gradients cross ranks through the sharded batch."""
    batch, weight = inputs()
    loss = loss_of(batch, weight, sharded=False)
    loss.backward()
    for result in two:
        torch.testing.assert_close(result["loss"], loss.detach())
        torch.testing.assert_close(result["gradients"], (batch.grad, weight.grad))


def test_tensors_of_several_dtypes_and_shapes_are_summed(two) -> None:
    for result in two:
        first, second, third = result["mixed"]
        assert (first.tolist(), second.tolist(), third.tolist()) == ([3.0, 3.0], [3], [[30.0], [30.0]])


def test_the_nan_of_a_rank_that_does_not_contribute_is_left_out(two) -> None:
    assert [result["of_first"][0].tolist() for result in two] == [[7.0], [7.0]]


def test_lists_of_different_lengths_are_joined_in_the_order_of_the_ranks(two) -> None:
    assert [result["of_all"] for result in two] == [["last", "a", "last"]] * 2


def test_each_item_is_on_one_rank_and_too_few_items_are_on_all(two) -> None:
    assert [result["items"] for result in two] == [(["a", "c", "e"], ["a"]), (["b", "d"], ["a"])]


def test_all_ranks_return_the_result_or_raise_the_error_of_rank_0(two) -> None:
    assert [result["from_first"] for result in two] == [0, 0]
    assert [result["error"] for result in two] == ["raised on rank 0"] * 2


def test_random_numbers_differ_between_ranks_and_passes_and_the_generator_is_restored(two) -> None:
    first, second = (result["random"] for result in two)
    assert len({*first[:2], *second[:2]}) == 4
    torch.manual_seed(11)
    assert first[2] == second[2] == float(torch.rand(()))


def test_one_process_exchanges_nothing() -> None:
    batch = torch.arange(CASES)
    assert shard_batch(batch) is batch
    assert all_gather_batch(batch, 3) is batch
    assert shard_items("abc") == ["a", "b", "c"]
    assert (rank(), num_ranks(), is_rank0(), broadcast_from_rank0(rank)) == (0, 1, True, 0)
    torch.manual_seed(5)
    with fork_rng_per_rank(0, torch.device("cpu")):
        drawn = float(torch.rand(()))
    torch.manual_seed(5)
    assert drawn == float(torch.rand(()))
