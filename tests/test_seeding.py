# SPDX-License-Identifier: Apache-2.0
"""Seeds and draws depend on their arguments only."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from scripts.seeding import derive_seed, draw_index, seed_generators

CRC32_CHECK_VALUE = 0xCBF43926  # published CRC-32 of the text "123456789"


def test_a_name_is_hashed_by_crc32_and_not_by_pythons_salted_hash():
    expected = np.random.SeedSequence([2, 3, CRC32_CHECK_VALUE, 5]).generate_state(1)[0]
    assert derive_seed(3, "123456789", 5) == expected


def test_a_trailing_zero_changes_the_seed():
    assert derive_seed(7, "step", 5) != derive_seed(7, "step", 5, 0)


def test_earlier_draws_do_not_affect_the_seed():
    first = derive_seed(3, "step", 5)
    seed_generators(99)
    torch.rand(2), np.random.rand(2), random.random()
    assert derive_seed(3, "step", 5) == first


def test_every_argument_changes_the_seed():
    seeds = [
        derive_seed(s, name, i, j) for s, name, i, j in itertools.product((0, 1), ("a", "b"), (1, 2, 3), (1, 2, 3))
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_order_of_arguments_changes_the_seed():
    assert derive_seed(0, 1, 2) != derive_seed(0, 2, 1)
    assert derive_seed(0, "a", "b") != derive_seed(0, "b", "a")


def test_a_seed_is_accepted_by_every_generator():
    for seed in (0, 1, 2**31, 2**40):
        value = derive_seed(seed, "x", 7)
        assert type(value) is int and 0 <= value < 2**32
        seed_generators(value)


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_all_three_generators_repeat_after_seeding():
    seed_generators(4)
    first = draws()
    draws()
    seed_generators(4)
    assert draws() == first


def test_another_seed_changes_all_three_generators():
    seed_generators(4)
    first = draws()
    seed_generators(5)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_each_pass_holds_each_case_once(size):
    for pass_index in range(4):
        positions = range(pass_index * size, (pass_index + 1) * size)
        assert sorted(draw_index(0, "labelled", p, size) for p in positions) == list(range(size))


def test_passes_streams_and_seeds_have_different_orders():
    def order(seed, stream, number):
        return tuple(draw_index(seed, stream, number * 10 + p, 10) for p in range(10))

    orders = {order(0, "a", 0), order(0, "a", 1), order(0, "b", 0), order(1, "a", 0)}
    assert len(orders) == 4


def test_positions_can_be_drawn_in_any_order():
    forward = [draw_index(2, "a", p, 5) for p in range(15)]
    assert [draw_index(2, "a", p, 5) for p in reversed(range(15))] == forward[::-1]
