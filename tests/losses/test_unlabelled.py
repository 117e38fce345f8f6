# SPDX-License-Identifier: Apache-2.0
"""Losses of unlabelled cases on a few voxels, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.unlabelled import ConsistencyTerm, EntropyTerm, PseudoLabelTerm, SoftPseudoLabelTerm
from tests.losses.batches import make_batch


def logits_of(*probabilities):
    """Logits `(1, K, 1, 1, N)` whose softmax is `probabilities`."""
    return torch.tensor(probabilities).log().T.reshape(1, len(probabilities[0]), 1, 1, -1)


STUDENT = [[0.4, 0.6], [0.8, 0.2], [0.5, 0.5], [0.3, 0.7]]
TEACHER = [[0.1, 0.9], [0.9, 0.1], [0.45, 0.55], [0.6, 0.4]]  # classes 1, 0, 1, 0


def step_of(student=STUDENT, teacher=TEACHER, labels=0, labelled=None):
    first = logits_of(*[[0.5, 0.5]] * 4) if labelled is None else labelled
    return make_batch(
        logits=torch.cat([first, logits_of(*student)]).requires_grad_(),
        features=torch.zeros(2, 3, 1, 1, 4),
        labels=torch.full((1, 1, 1, 4), labels),
        teacher_logits=None if teacher is None else logits_of(*teacher).requires_grad_(),
    )


def test_every_voxel_counts_at_confidence_zero():
    cross_entropy = -(math.log(0.6) + math.log(0.8) + math.log(0.5) + math.log(0.3)) / 4
    dice = 1 - 2 * (0.6 + 0.5) / ((0.6 + 0.2 + 0.5 + 0.7) + 2)  # class 1; the target holds it at voxels 0 and 2
    assert PseudoLabelTerm()(step_of()).item() == pytest.approx(cross_entropy + dice, abs=1e-4)


def test_voxels_below_the_confidence_take_no_part_in_either_half():
    cross_entropy = -(math.log(0.6) + math.log(0.8)) / 2
    dice = 1 - 2 * 0.6 / ((0.6 + 0.2) + 1)
    step = step_of()
    value = PseudoLabelTerm(confidence=0.8)(step)
    assert value.item() == pytest.approx(cross_entropy + dice, abs=1e-4)
    value.backward()
    assert step.logits.grad[1, :, 0, 0].abs().sum(0).gt(0).tolist() == [True, True, False, False]


def test_voxels_without_a_pseudo_label_take_no_part_in_either_half():
    nothing = [math.nan, math.nan]
    step = step_of(teacher=[*TEACHER[:2], nothing, nothing])
    value = PseudoLabelTerm(power=2.0)(step)
    cross_entropy = -(0.9**2 * math.log(0.6) + 0.9**2 * math.log(0.8)) / 2
    assert value.item() == pytest.approx(cross_entropy + 1 - 2 * 0.6 / ((0.6 + 0.2) + 1), abs=1e-4)
    value.backward()
    assert step.logits.grad[1, :, 0, 0].abs().sum(0).gt(0).tolist() == [True, True, False, False]


def test_dice_is_the_mean_over_foreground_classes_that_the_target_holds():
    student = [[0.2, 0.5, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]]
    teacher = [[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]
    cross_entropy = -(math.log(0.5) + math.log(0.7) + math.log(0.7) + math.log(0.1)) / 4
    first = 1 - 2 * 0.5 / (0.9 + 1)
    third = 1 - 2 * 0.8 / (1.0 + 2)  # class 2 is nowhere in the target
    step = make_batch(
        torch.cat([torch.zeros(1, 4, 1, 1, 4), logits_of(*student)]),
        torch.zeros(2, 3, 1, 1, 4),
        torch.zeros(1, 1, 1, 4, dtype=torch.int64),
        logits_of(*teacher),
    )
    expected = cross_entropy + (first + third) / 2
    assert PseudoLabelTerm()(step).item() == pytest.approx(expected, abs=1e-4)


def test_target_of_background_alone_leaves_the_cross_entropy():
    teacher = [[0.9, 0.1]] * 4
    cross_entropy = -sum(math.log(p[0]) for p in STUDENT) / 4
    assert PseudoLabelTerm()(step_of(teacher=teacher)).item() == pytest.approx(cross_entropy, abs=1e-5)


def test_no_confident_voxel_gives_zero_with_zero_gradient():
    step = step_of()
    value = PseudoLabelTerm(confidence=0.99)(step)
    value.backward()
    assert value.item() == 0 and step.logits.grad.eq(0).all()


@pytest.mark.parametrize("term", [PseudoLabelTerm, SoftPseudoLabelTerm, ConsistencyTerm, EntropyTerm])
def test_no_unlabelled_case_gives_zero_with_zero_gradient(term):
    logits = torch.randn(1, 2, 1, 1, 4, requires_grad=True)
    step = make_batch(logits, torch.zeros(1, 3, 1, 1, 4), torch.zeros(1, 1, 1, 4, dtype=torch.int64))
    value = term()(step)
    value.backward()
    assert value.item() == 0 and logits.grad.eq(0).all()


def test_gradient_reaches_the_unlabelled_logits_but_not_the_teacher():
    step = step_of()
    PseudoLabelTerm()(step).backward()
    assert step.teacher_logits.grad is None
    assert step.logits.grad[0].eq(0).all() and step.logits.grad[1].abs().sum() > 0


def test_without_a_teacher_the_network_labels_for_itself():
    student = [[0.4, 0.6], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7]]  # classes 1, 0, 1, 1
    cross_entropy = -(math.log(0.6) + math.log(0.8) + math.log(0.55) + math.log(0.7)) / 4
    dice = 1 - 2 * (0.6 + 0.55 + 0.7) / ((0.6 + 0.2 + 0.55 + 0.7) + 3)
    value = PseudoLabelTerm()(step_of(student=student, teacher=None)).item()
    assert value == pytest.approx(cross_entropy + dice, abs=1e-4)


def test_labelled_cases_have_no_influence():
    values = {
        PseudoLabelTerm()(step_of(labels=label, labelled=torch.full((1, 2, 1, 1, 4), shift))).item()
        for label, shift in ((0, 0.0), (1, 5.0))
    }
    assert len(values) == 1


def test_a_power_weighs_the_cross_entropy_of_a_voxel_by_its_pseudo_labels_probability():
    """Two voxels count, with weight 0.9^2; the mean divides by their number, as in the published code."""
    cross_entropy = 0.81 * -(math.log(0.6) + math.log(0.8)) / 2
    dice = 1 - 2 * 0.6 / ((0.6 + 0.2) + 1)
    value = PseudoLabelTerm(confidence=0.8, power=2.0)(step_of())
    assert value.item() == pytest.approx(cross_entropy + dice, abs=1e-4)


@pytest.mark.parametrize("dice_weight", [0.0, 0.5])
def test_the_dice_part_has_a_weight_of_its_own(dice_weight):
    cross_entropy = -(math.log(0.6) + math.log(0.8)) / 2
    dice = 1 - 2 * 0.6 / ((0.6 + 0.2) + 1)
    value = PseudoLabelTerm(confidence=0.8, dice_weight=dice_weight)(step_of())
    assert value.item() == pytest.approx(cross_entropy + dice_weight * dice, abs=1e-4)


@pytest.mark.parametrize("wrong", [{"power": -1.0}, {"dice_weight": -0.5}])
def test_a_negative_power_or_weight_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PseudoLabelTerm(**wrong)


def test_soft_targets_count_by_their_probability_everywhere():
    cross_entropy = -sum(
        t * math.log(s)
        for student, teacher in zip(STUDENT, TEACHER, strict=True)
        for s, t in zip(student, teacher, strict=True)
    )
    foreground = [(student[1], teacher[1]) for student, teacher in zip(STUDENT, TEACHER, strict=True)]
    overlap = sum(s * t for s, t in foreground)
    dice = 1 - 2 * overlap / sum(s * s + t * t for s, t in foreground)
    step = step_of()
    value = SoftPseudoLabelTerm()(step)
    assert value.item() == pytest.approx(cross_entropy / 4 + dice, abs=1e-4)
    value.backward()
    assert step.teacher_logits.grad is None and step.logits.grad[0].eq(0).all()


def test_soft_targets_do_not_unlearn_a_class_that_is_never_the_most_probable_one():
    """If student and teacher give a class one third, they agree; a hard label would push towards background."""
    probabilities = [[0.66, 0.34]] * 4
    for term, pushed in ((SoftPseudoLabelTerm(), False), (PseudoLabelTerm(), True)):
        step = step_of(student=probabilities, teacher=probabilities)
        term(step).backward()
        assert bool(step.logits.grad[1, 1].abs().max() > 1e-6) is pushed


def consistency_batch(student, teacher):
    return make_batch(
        logits=torch.cat([torch.zeros_like(logits_of(*student)), logits_of(*student)]).requires_grad_(),
        features=torch.zeros(2, 3, 1, 1, 2),
        labels=torch.zeros(1, 1, 1, 2, dtype=torch.int64),
        teacher_logits=logits_of(*teacher).requires_grad_(),
    )


def test_consistency_is_the_mean_squared_difference_of_probabilities():
    step = consistency_batch(student=[[0.4, 0.6], [0.8, 0.2]], teacher=[[0.1, 0.9], [0.9, 0.1]])
    value = ConsistencyTerm()(step)
    assert value.item() == pytest.approx((0.3**2 + 0.3**2 + 0.1**2 + 0.1**2) / 4, abs=1e-6)
    value.backward()
    assert step.teacher_logits.grad is None
    assert step.logits.grad[0].eq(0).all() and step.logits.grad[1].abs().sum() > 0


def test_logits_that_differ_by_a_constant_agree():
    step = consistency_batch(student=[[0.4, 0.6], [0.8, 0.2]], teacher=[[0.4, 0.6], [0.8, 0.2]])
    shifted = make_batch(step.logits, step.features, step.labels, step.teacher_logits + 3.0)
    assert ConsistencyTerm()(shifted).item() == pytest.approx(0.0, abs=1e-10)


def test_opposite_certainties_reach_the_upper_bound():
    step = consistency_batch(student=[[1.0, 1e-30], [1.0, 1e-30]], teacher=[[1e-30, 1.0], [1e-30, 1.0]])
    assert ConsistencyTerm()(step).item() == pytest.approx(1.0)


def entropy_batch(*probabilities, labelled=1):
    """Undecided labelled cases, then one unlabelled case `(1, K, 1, 1, N)` with these probabilities."""
    unlabelled = torch.tensor(probabilities).log().T.reshape(1, len(probabilities[0]), 1, 1, -1)
    logits = torch.cat([torch.zeros_like(unlabelled)] * labelled + [unlabelled]).requires_grad_()
    labels = torch.zeros(labelled, *logits.shape[2:], dtype=torch.int64)
    return make_batch(logits, torch.zeros(len(logits), 3, *logits.shape[2:]), labels)


def test_entropy_is_the_mean_over_unlabelled_voxels_divided_by_log_k():
    step = entropy_batch([0.5, 0.25, 0.25], [0.75, 0.125, 0.125])
    first = 0.5 * math.log(2) + 0.5 * math.log(4)
    second = 0.75 * math.log(4 / 3) + 0.25 * math.log(8)
    value = EntropyTerm()(step)
    assert value.item() == pytest.approx((first + second) / 2 / math.log(3), abs=1e-6)
    value.backward()
    assert step.logits.grad[0].eq(0).all() and step.logits.grad[1].ne(0).any()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_entropy_of_equal_probabilities_is_one_for_any_number_of_classes(classes):
    assert EntropyTerm()(entropy_batch([1 / classes] * classes)).item() == pytest.approx(1.0, abs=1e-6)


def test_entropy_of_a_certain_voxel_is_zero_and_its_gradient_finite():
    logits = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1, 1).requires_grad_()
    value = EntropyTerm()(make_batch(logits, torch.zeros(1, 1, 1, 1, 1), torch.zeros(0, 1, 1, 1).long()))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6) and logits.grad.isfinite().all()


def test_a_step_towards_lower_entropy_makes_the_likelier_class_likelier():
    step = entropy_batch([0.6, 0.4])
    EntropyTerm()(step).backward()
    gradient = step.logits.grad[1].flatten()
    assert gradient[0] < 0 < gradient[1]
