# SPDX-License-Identifier: Apache-2.0
"""Ramps against values worked out on paper."""

from __future__ import annotations

import pytest

from scripts.losses.schedules import poly_rate, sigmoid_rampup, step_rate, warmed_decay

EXP_MINUS_5 = 0.006737946999085467
EXP_MINUS_1_25 = 0.2865047968601901


@pytest.mark.parametrize(
    ("step", "length", "expected"),
    [
        (0, 40, EXP_MINUS_5),
        (20, 40, EXP_MINUS_1_25),
        (40, 40, 1.0),
        (-3, 40, EXP_MINUS_5),
        (400, 40, 1.0),
        (0.1, 0.2, EXP_MINUS_1_25),
    ],
)
def test_rampup_is_clipped_at_both_ends(step, length, expected):
    assert sigmoid_rampup(step, length) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("length", [0, -1])
def test_ramp_without_length_is_over(length):
    assert sigmoid_rampup(0, length) == 1.0


@pytest.mark.parametrize(
    ("updates", "expected"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (80, 0.9), (890, 0.99), (10**6, 0.99)]
)
def test_decay_warms_up_to_its_value(updates, expected):
    assert warmed_decay(0.99, updates) == pytest.approx(expected, rel=1e-12)


def test_small_decay_is_never_exceeded():
    assert warmed_decay(0.05, 0) == 0.05
    assert warmed_decay(0.0, 100) == 0.0


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (25, 0.5625), (50, 0.25), (75, 0.0625), (100, 0.0), (150, 0.0)]
)
def test_poly_rate_with_power_two(step, expected):
    assert poly_rate(step, 100, power=2) == pytest.approx(expected, abs=1e-12)


def test_default_power_is_nine_tenths():
    assert poly_rate(50, 100) == pytest.approx(0.5358867312681466, rel=1e-12)  # 0.5 ** 0.9


def test_warmup_climbs_in_equal_shares_of_the_rate():
    assert [poly_rate(s, 100, power=1, warmup=4) for s in range(5)] == pytest.approx(
        [0.25 * 1.0, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96]
    )


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (2499, 1.0), (2500, 0.1), (4999, 0.1), (5000, 0.01), (14999, 1e-5)]
)
def test_step_rate_falls_after_each_sixth_of_the_run(step, factor):
    assert step_rate(step, 15000) == pytest.approx(factor)
    assert step_rate(step // 100, 150) == pytest.approx(factor)
