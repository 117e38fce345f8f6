# SPDX-License-Identifier: Apache-2.0
"""Dice losses on a few voxels, by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.supervised import linear_dice_loss, squared_dice_loss


def test_linear_dice_divides_twice_the_overlap_by_the_sum_of_both():
    value = linear_dice_loss(torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1.0, 0.5, 0.5]), smooth=0.0)
    assert value.item() == pytest.approx(1 - 2 * 1.0 / (1.5 + 2.0))


def test_linear_dice_of_a_soft_prediction_to_itself_is_not_zero_and_falls_with_certainty():
    values = [linear_dice_loss(p, p).item() for p in (torch.full((4,), 0.5), torch.tensor([0.9, 0.1, 0.9, 0.1]))]
    assert values == pytest.approx([0.5, 1 - 2 * 1.64 / 4.0])


def test_linear_dice_of_two_empty_inputs_is_zero_and_of_one_empty_input_one():
    empty, full = torch.zeros(5), torch.ones(5)
    assert linear_dice_loss(empty, empty) == 0
    assert linear_dice_loss(full, empty).item() == pytest.approx(1.0)


def two_cases(first, second):
    """Probabilities of class 1 at two voxels of two cases, as `(2, 2, 2)`."""
    p = torch.tensor([first, second])
    return torch.stack([1 - p, p], dim=1)


def test_squared_dice_is_the_mean_over_classes_of_sums_over_cases_and_voxels():
    prediction, target = two_cases([0.5, 1.0], [0.0, 0.0]), two_cases([1.0, 1.0], [0.0, 1.0])
    background = 1 - 2 * 1.0 / ((0.25 + 1 + 1) + 1)
    foreground = 1 - 2 * 1.5 / ((0.25 + 1) + 3)
    assert squared_dice_loss(prediction, target).item() == pytest.approx((background + foreground) / 2)


def test_squared_dice_of_a_soft_prediction_to_itself_is_zero():
    prediction = two_cases([0.3, 0.6], [0.2, 0.9])
    assert squared_dice_loss(prediction, prediction).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("smooth", "expected"), [(1e-10, 0.0), (1.0, 0.0)])
def test_a_class_that_is_nowhere_costs_nothing(smooth, expected):
    nowhere = two_cases([0.0, 0.0], [0.0, 0.0])
    assert squared_dice_loss(nowhere, nowhere, smooth).item() == pytest.approx(expected, abs=1e-6)


def test_smoothing_is_added_above_and_below():
    prediction, target = torch.tensor([[[0.5]]]), torch.tensor([[[1.0]]])
    assert squared_dice_loss(prediction, target, smooth=2.0).item() == pytest.approx(1 - (1.0 + 2) / (1.25 + 2))
    assert linear_dice_loss(prediction, target, smooth=2.0).item() == pytest.approx(1 - (1.0 + 2) / (1.5 + 2))
