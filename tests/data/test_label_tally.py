# SPDX-License-Identifier: Apache-2.0
"""Label values counted as whole numbers, with what is none."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data import labels as label_tally
from scripts.data.labels import tally


@pytest.mark.parametrize("slab", [3, 2**20])
def test_values_near_a_whole_number_are_counted_with_it(monkeypatch, slab) -> None:
    monkeypatch.setattr(label_tally, "SLAB_VOXELS", slab)
    counted = tally(np.array([0.0, 1.0, 0.9999, 1.0009, 2.0, -0.0001, 1.0]))
    assert counted.whole == {0: 2, 1: 4, 2: 1}
    assert counted.rounded == 3
    assert not counted.other and counted.complete


@pytest.mark.parametrize("slab", [2, 2**20])
def test_what_is_no_whole_number_is_kept_apart(monkeypatch, slab) -> None:
    monkeypatch.setattr(label_tally, "SLAB_VOXELS", slab)
    counted = tally(np.array([0.998, np.nan, np.inf, np.nan, 1.0, -np.inf, 0.998]))
    assert counted.whole == {1: 1} and counted.rounded == 0
    finite = {value: number for value, number in counted.other.items() if np.isfinite(value)}
    assert finite == {0.998: 2}
    assert sorted(counted.other.values()) == [1, 1, 2, 2], "all NaN are one value"


def test_large_integers_are_exact() -> None:
    value = 2**53 + 1  # no float64
    assert tally(np.array([value, value, 0])).whole == {value: 2, 0: 1}


def test_counting_stops_at_an_image() -> None:
    assert tally(np.arange(256)).complete
    assert not tally(np.arange(257)).complete
    assert not tally(np.linspace(0, 1, 1000)).complete


def test_an_array_in_any_memory_order_is_counted_whole() -> None:
    array = np.arange(24).reshape(2, 3, 4) % 5
    expected = {value: int((array == value).sum()) for value in range(5)}
    for view in (array, array.T, array[::-1], np.asfortranarray(array)):
        assert tally(view).whole == expected
