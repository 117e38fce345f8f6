# SPDX-License-Identifier: Apache-2.0
"""The largest part of small masks."""

from __future__ import annotations

import numpy as np
import torch

from scripts.images.components import largest_component, largest_components


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


def test_each_foreground_class_of_each_case_keeps_its_largest_part():
    labels = torch.tensor([[1, 0, 1, 1, 2, 2], [2, 2, 0, 2, 0, 1]]).reshape(2, 1, 1, 6)
    kept = largest_components(labels)
    assert kept[:, 0, 0].tolist() == [[0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 0, 1]]
    assert labels[0, 0, 0, 0] == 1 and kept.dtype == torch.int64
