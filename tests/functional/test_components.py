# SPDX-License-Identifier: Apache-2.0
"""The largest part of small masks."""

from __future__ import annotations

import numpy as np

from scripts.functional.components import largest_component


def test_larger_part_is_kept():
    assert largest_component(np.array([1, 0, 1, 1, 0, 1])).tolist() == [0, 0, 1, 1, 0, 0]


def test_first_part_is_kept_on_a_tie():
    assert largest_component(np.array([0, 1, 1, 0, 1, 1])).tolist() == [0, 1, 1, 0, 0, 0]


def test_corners_connect():
    mask = np.zeros((3, 3, 3))
    mask[0, 0, 0] = mask[1, 1, 1] = mask[0, 2, 2] = 1
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [0, 2, 2], [1, 1, 1]]
    mask[1, 1, 1] = 0
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0]]


def test_empty_mask_stays_empty_and_a_full_one_full():
    assert not largest_component(np.zeros((2, 3), bool)).any()
    assert largest_component(np.ones((2, 3), bool)).all()
