# SPDX-License-Identifier: Apache-2.0
"""Losses of the labelled cases and Dice losses, against loops and values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.errors import UserError
from scripts.losses.supervised import LinearDiceTerm, SupervisedTerm, linear_dice_loss, squared_dice_loss
from tests.losses.batches import make_batch

SHAPE = (2, 3, 4)


def step_of(labelled=2, unlabelled=1, classes=3, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(labelled + unlabelled, classes, *SHAPE, requires_grad=True)
    labels = torch.randint(classes, (labelled, *SHAPE))
    return make_batch(logits=logits, features=torch.randn(labelled + unlabelled, 5, *SHAPE), labels=labels)


def by_loop(step):
    """Cross-entropy per voxel and Dice over the whole batch, foreground classes only."""
    cross_entropy, voxels = 0.0, 0
    classes = step.logits.shape[1]
    overlap, size = [0.0] * classes, [0.0] * classes
    for b in range(step.labels.shape[0]):
        for x in range(SHAPE[0]):
            for y in range(SHAPE[1]):
                for z in range(SHAPE[2]):
                    values = [math.exp(v) for v in step.logits[b, :, x, y, z].tolist()]
                    probabilities = [v / sum(values) for v in values]
                    label = int(step.labels[b, x, y, z])
                    cross_entropy -= math.log(probabilities[label])
                    voxels += 1
                    for c in range(classes):
                        overlap[c] += probabilities[c] * (c == label)
                        size[c] += probabilities[c] + (c == label)
    dice = [1 - 2 * o / s for o, s in zip(overlap, size, strict=True)][1:]
    return sum(dice) / len(dice), cross_entropy / voxels


@pytest.mark.parametrize("dice_weight", [1.0, 0.0, 0.5])
def test_dice_is_weighted_and_both_parts_equal_a_slow_loop(dice_weight):
    step = step_of()
    dice, cross_entropy = by_loop(step)
    value = SupervisedTerm(dice_weight=dice_weight)(step).item()
    assert value == pytest.approx(dice_weight * dice + cross_entropy, abs=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 3.0], [0, 1, 4]])
def test_class_weights_multiply_dice_of_each_class_and_voxels_of_cross_entropy(weights):
    step = three_class_step(labels=(1, 2, 2))
    losses = [-math.log(0.5), -math.log(0.8), -math.log(0.1)]  # of the three voxels, of the classes 1, 2 and 2
    of_voxel = [weights[1], weights[2], weights[2]]
    cross_entropy = sum(w * loss for w, loss in zip(of_voxel, losses, strict=True)) / sum(of_voxel)
    first, second = 1 - 2 * 0.5 / (0.9 + 1), 1 - 2 * (0.8 + 0.1) / (1.2 + 2)
    value = SupervisedTerm(class_weights=weights)(step).item()
    assert value == pytest.approx((weights[1] * first + weights[2] * second) / 2 + cross_entropy, abs=1e-4)
    linear = LinearDiceTerm(class_weights=weights)(step).item()
    assert linear == pytest.approx((weights[1] * first + weights[2] * second) / 2, abs=1e-6)


def test_class_weights_are_no_state_and_follow_the_loss_to_its_device():
    term = SupervisedTerm(class_weights=[1, 2, 3])
    assert term.state_dict().keys() == SupervisedTerm().state_dict().keys()
    assert {str(buffer.device) for buffer in term.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("term", [SupervisedTerm, LinearDiceTerm])
def test_another_number_of_weights_than_of_classes_is_refused(term):
    with pytest.raises(UserError, match="class_weights"):
        term(class_weights=[1.0, 2.0])(three_class_step())


def test_unlabelled_cases_have_no_influence():
    step = step_of()
    changed = step.logits.detach().clone()
    changed[2:] += 10 * torch.randn_like(changed[2:])
    other = make_batch(changed, step.features, step.labels)
    assert SupervisedTerm()(step).item() == SupervisedTerm()(other).item()
    SupervisedTerm()(step).backward()
    assert step.logits.grad[:2].abs().sum() > 0 and step.logits.grad[2:].eq(0).all()


def test_without_labelled_cases_it_is_zero_with_zero_gradient():
    step = step_of(labelled=0, unlabelled=2)
    value = SupervisedTerm()(step)
    value.backward()
    assert value.item() == 0 and step.logits.grad.eq(0).all()


def test_perfect_prediction_costs_nothing():
    labels = torch.arange(24).reshape(1, *SHAPE) % 3
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    value = SupervisedTerm()(make_batch(logits, logits, labels)).item()
    assert value == pytest.approx(0.0, abs=1e-6)


PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])


def three_class_step(labels=(1, 2, 0)):
    logits = PROBABILITIES.log().T.reshape(1, 3, 1, 1, 3).clone().requires_grad_()
    return make_batch(logits, torch.zeros(1, 1, 1, 1, 3), torch.tensor(labels).reshape(1, 1, 1, 3))


FIRST = 1 - 2 * 0.5 / (0.9 + 1)
SECOND = 1 - 2 * 0.8 / (1.2 + 1)


@pytest.mark.parametrize(("classes", "expected"), [("first", FIRST), ("foreground", (FIRST + SECOND) / 2)])
def test_linear_dice_is_that_of_foreground_probabilities_or_of_class_one_alone(classes, expected):
    assert LinearDiceTerm(classes=classes)(three_class_step()).item() == pytest.approx(expected, abs=1e-6)


def test_linear_dice_ignores_unlabelled_cases_and_is_zero_without_labelled_ones():
    step = three_class_step()
    both = make_batch(torch.cat([step.logits, -step.logits]), step.features, step.labels)
    assert LinearDiceTerm()(both).item() == pytest.approx((FIRST + SECOND) / 2, abs=1e-6)
    none = make_batch(step.logits, step.features, step.labels[:0])
    value = LinearDiceTerm()(none)
    value.backward()
    assert value == 0 and step.logits.grad.eq(0).all()


def test_linear_dice_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"classes.*'all'"):
        LinearDiceTerm(classes="all")


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
