# SPDX-License-Identifier: Apache-2.0
"""Ramps and learning rates against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from scripts.losses.schedules import RampUp, cosine_rate, sigmoid_rampup, step_rate, warmed_decay

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
    ("updates", "share"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (80, 0.9), (890, 0.99), (10**9, 1.0 - 9e-9)]
)
@pytest.mark.parametrize("decay", [0.99, 0.5, 0.0])
def test_decay_warms_up_to_its_value(decay, updates, share):
    assert warmed_decay(decay, updates) == pytest.approx(decay * share, rel=1e-12)


def test_warmup_climbs_in_equal_shares_of_the_rate():
    shares = [0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [share * (1 + math.cos(math.pi * step / 100)) / 2 for step, share in enumerate(shares)]
    assert [cosine_rate(step, 100, warmup=4) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (2499, 1.0), (2500, 0.1), (4999, 0.1), (5000, 0.01), (14999, 1e-5)]
)
def test_step_rate_falls_after_each_sixth_of_the_run(step, factor):
    assert step_rate(step, 15000) == pytest.approx(factor)
    assert step_rate(step // 100, 150) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 0.0),
        (19, 0.0),
        (20, 0.0),  # the loader draws unlabelled cases from step 21 on if `unlabelled_start` is 0.2
        (21, 2 * math.exp(-5 * (1 - 1 / 40) ** 2)),
        (40, 2 * math.exp(-1.25)),
        (60, 2.0),
        (100, 2.0),
    ],
)
def test_rampup_waits_climbs_and_stays(step, expected):
    assert RampUp(2.0, start=0.2, end=0.6).at(step, 100) == pytest.approx(expected, rel=1e-9)


def test_rampup_scales_with_the_run():
    ramp = RampUp(3.0, 0.1, 0.5)
    assert ramp.at(30, 100) == pytest.approx(ramp.at(300, 1000)) == pytest.approx(3 * math.exp(-1.25))


def test_rampup_without_length_is_a_switch():
    ramp = RampUp(2.0, start=0.5, end=0.5)
    assert [ramp.at(step, 10) for step in (1, 5, 6, 10)] == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.4), (0.5, 0.4), (0.1, 1.1)])
def test_rampup_with_impossible_fractions_is_refused(start, end):
    with pytest.raises(ValueError, match=f"start.*{start}.*end.*{end}"):
        RampUp(1.0, start, end)


@pytest.mark.parametrize("max_steps", [15000, 1500, 100])
def test_a_staircase_climbs_as_the_published_codes_and_scales_with_the_run(max_steps):
    ramp = RampUp(2.0, end=0.4, stairs=40)
    width = max_steps // 100  # a stair; the codes' 150 of 15,000
    for stair in (0, 1, 3, 7, 39, 40, 70):  # iteration n, counted from 1, is on stair n // 150
        expected = 2.0 * math.exp(-5 * (1 - min(stair, 40) / 40) ** 2)
        for step in {stair * width, (stair + 1) * width - 1} - {0}:
            assert ramp.at(step, max_steps) == pytest.approx(expected)


def test_a_staircase_may_start_late_and_may_have_no_length():
    late = RampUp(1.0, start=0.5, end=0.7, stairs=2)
    weights = [late.at(step, 100) for step in (50, 51, 59, 60, 69, 70)]
    assert weights == pytest.approx([0.0, math.exp(-5), math.exp(-5), math.exp(-1.25), math.exp(-1.25), 1.0])
    assert RampUp(1.0, start=0.5, end=0.5, stairs=4).at(51, 100) == 1.0


def test_negative_stairs_are_refused():
    with pytest.raises(ValueError, match="stairs"):
        RampUp(1.0, stairs=-1)
