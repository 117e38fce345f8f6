# SPDX-License-Identifier: Apache-2.0
"""Covariances and their distances, on paper."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.correlation import correlation_distance, covariance, cross_view_entropy, pool_distances

SLANTED = torch.tensor([[2.0, 4.0], [4.0, 8.0]])


def test_covariance_is_about_the_mean_with_divisor_n_minus_one():
    assert torch.equal(covariance(torch.tensor([[1.0, 0.0], [3.0, 4.0]])), SLANTED)
    three = covariance(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(three, torch.tensor([[3.0, -1.5], [-1.5, 3.0]]))


def test_covariance_of_bfloat16_rows_is_computed_in_float32():
    rows = torch.tensor([[100.0, 1.0], [101.0, 2.0]], dtype=torch.bfloat16)
    assert covariance(rows).dtype == torch.float32 and covariance(rows)[0, 1] == 0.5
    assert covariance(rows.double()).dtype == torch.float64


def test_distance_is_the_squared_frobenius_norm_over_4_d_squared():
    assert correlation_distance(SLANTED, torch.zeros(2, 2)).item() == 100 / 16
    assert correlation_distance(torch.eye(3), torch.ones(3, 3)).item() == pytest.approx(6 / 36)
    assert correlation_distance(SLANTED, SLANTED).item() == 0


def test_every_covariance_is_compared_with_every_pool():
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    distances = pool_distances([zero, 3 * one], [zero, one, 5 * one])
    assert distances.tolist() == pytest.approx([0, 1 / 4, 25 / 4, 9 / 4, 4 / 4, 4 / 4])


def test_cross_view_entropy_takes_the_second_view_as_it_is():
    log_sum = math.log(1 + math.e)
    value = cross_view_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert value.item() == pytest.approx((1 * log_sum - 3 * (1 - log_sum)) / 2, rel=1e-6)


def test_cross_view_entropy_lowers_the_second_views_distances():
    first, second = torch.tensor([0.1, 0.2], requires_grad=True), torch.tensor([0.3, 0.1], requires_grad=True)
    cross_view_entropy(first, second).backward()
    assert second.grad.gt(0).all()
    assert first.grad.abs().max() < second.grad.min()
