# SPDX-License-Identifier: Apache-2.0
"""The choice of test cases."""

from __future__ import annotations

import hashlib

import pytest

from scripts.dataset_setup.roles import choose_tests, number_of_tests
from scripts.errors import UserError

NAMES = [f"case_{n:02d}" for n in range(20)]


def test_the_cases_with_the_lowest_hashes_are_test_cases() -> None:
    ranked = sorted(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert choose_tests(NAMES, 3) == set(ranked[:3])


def test_order_does_not_matter_and_more_tests_keep_the_earlier_ones() -> None:
    assert choose_tests(NAMES[::-1], 4) == choose_tests(NAMES, 4) < choose_tests(NAMES, 7)


def test_a_fraction_is_rounded_down_in_decimals() -> None:
    assert [number_of_tests(n, 0.2) for n in (1, 4, 5, 50)] == [0, 0, 1, 10]
    assert number_of_tests(30, 0.1) == 3
    assert number_of_tests(100, 0.29) == 29  # 28.999... in binary


def test_cases_of_one_patient_stay_together() -> None:
    names = [f"p{p}_visit{v}" for p in range(6) for v in range(3)]
    chosen = choose_tests(names, 4, r"p\d+")
    assert len(chosen) == 6
    assert all({f"{name[:2]}_visit{v}" for v in range(3)} <= chosen for name in chosen)


@pytest.mark.parametrize("number", [3, 5])
def test_at_least_one_case_must_be_left_for_training(number: int) -> None:
    with pytest.raises(UserError, match="--test_cases"):
        choose_tests(["a", "b", "c"], number)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="--test_fraction"):
        number_of_tests(10, fraction)


def test_a_broken_pattern_and_a_negative_number_are_refused() -> None:
    with pytest.raises(UserError, match="--patient_pattern"):
        choose_tests(NAMES, 2, "p(")
    with pytest.raises(UserError, match="--test_cases"):
        choose_tests(NAMES, -1)
