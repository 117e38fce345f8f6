# SPDX-License-Identifier: Apache-2.0
"""What is far from the rest."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data.checks.cohort import Member, far_from_median, unlike_the_rest
from scripts.data.checks.finding import Kind
from scripts.images.header import VolumeHeader


def member(name: str, spacing=(1.0, 1.0, 2.0), shape=(10, 12, 14), axes=(1, 1, 1), oriented=True) -> Member:
    grid = np.diag([*np.multiply(spacing, axes), 1.0])
    return Member(name, "labelled", VolumeHeader(f"{name}.nii", shape, 1, grid, "int16", oriented))


def told(members) -> list[tuple[Kind, str]]:
    return [(finding.kind, finding.case) for finding in unlike_the_rest(members)]


@pytest.mark.parametrize(("value", "far"), [(2.01, True), (1.99, False), (1 / 2.01, True), (1 / 1.99, False)])
def test_among_equal_values_twice_and_half_are_the_limits(value, far) -> None:
    values = np.array([[3.0, 1.0]] * 6 + [[3.0, value]])
    assert far_from_median(values).tolist() == [False] * 6 + [far]


def test_values_that_vary_much_have_no_outlier_at_three_times_the_median() -> None:
    """Logarithms spread evenly from -1 to 1 deviate by 0.5 in the median: the limit is near exp(5 * 1.48 / 2) = 41."""
    spread = np.exp(np.linspace(-1, 1, 21))
    assert not far_from_median(np.append(spread, 3.0)[:, None]).any()
    assert far_from_median(np.append(spread, 100.0)[:, None]).tolist() == [False] * 21 + [True]


def test_of_four_cases_nobody_can_say_what_is_usual() -> None:
    odd = member("odd", spacing=(1.0, 1.0, 9.0))
    assert told([member(str(n)) for n in range(3)] + [odd]) == []
    assert told([member(str(n)) for n in range(4)] + [odd]) == [(Kind.SPACING, "odd")]


def test_spacings_are_compared_along_the_bodys_axes() -> None:
    """Stored with the head-to-foot axis first, 2 mm along it as in the others."""
    turned = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    other = Member("p", "test", VolumeHeader("p.nii", (14, 10, 12), 1, turned, "int16", True))
    assert told([*(member(str(n)) for n in range(6)), other]) == [(Kind.ORIENTATION, "p")]


def test_without_a_majority_no_orientation_is_the_odd_one() -> None:
    halves = [member(str(n), axes=(1, 1, 1) if n % 2 else (-1, -1, 1)) for n in range(6)]
    assert told(halves) == []
    assert told([*halves, member("7")]) == [(Kind.ORIENTATION, "0"), (Kind.ORIENTATION, "2"), (Kind.ORIENTATION, "4")]


def test_files_without_orientation_do_not_vote() -> None:
    silent = [member(f"s{n}", axes=(-1, -1, 1), oriented=False) for n in range(9)]
    assert told([*silent, *(member(str(n)) for n in range(3))]) == []
