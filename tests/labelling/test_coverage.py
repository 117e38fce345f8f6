# SPDX-License-Identifier: Apache-2.0
"""The order of greatest distances, on points on a line."""

from __future__ import annotations

import pytest
import torch

from scripts.labelling.prioritise import farthest_first


def test_each_point_is_the_farthest_from_what_is_known_and_chosen() -> None:
    points = torch.tensor([[1.0], [10.0], [9.0], [4.0]])
    order, distances = farthest_first(points, torch.tensor([[0.0]]))
    assert order == [1, 3, 0, 2]  # 10 from 0; then 4 (4 from 0), then 1 and 9 are 1 away, the first of them
    assert distances == pytest.approx([1.0, 10.0, 1.0, 4.0])


def test_two_equal_points_are_not_chosen_one_after_the_other() -> None:
    points = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
    order, distances = farthest_first(points, torch.zeros(1, 2))
    assert order == [0, 2, 1]
    assert distances == pytest.approx([5.0, 0.0, 3.0])
