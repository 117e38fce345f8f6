# SPDX-License-Identifier: Apache-2.0
"""Which voxels the contrast terms take, and under which class."""

from __future__ import annotations

import logging

import pytest
import torch

from scripts.losses.contrast import LabelledContrastTerm, UnlabelledContrastTerm
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from tests.losses.batches import make_batch


def loss():
    """Class 1 looks east, class 2 north, class 0 has no memory."""
    memory = PrototypeMemory(3, 2, 2)
    memory.update({1: torch.tensor([[1.0, 0.0]] * 2), 2: torch.tensor([[0.0, 1.0]] * 2)})
    return ContrastivePrototypeLoss(memory)


def voxels(values):
    """Four vectors as maps `(1, C, 1, 2, 2)`."""
    return torch.tensor(values, dtype=torch.float32).T.reshape(1, -1, 1, 2, 2)


def confident(classes, probability=0.98):
    """Logits `(1, 3, 1, 2, 2)` that give each voxel's class that probability."""
    rest = (1 - probability) / 2
    return voxels([[probability if k == c else rest for k in range(3)] for c in classes]).log()


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def step_of(labelled, unlabelled, labels=(1, 1, 2, 2), guesses=(1, 1, 2, 2), teacher=None, probability=0.98):
    return make_batch(
        logits=torch.cat([confident([0, 0, 0, 0]), confident(guesses, probability)]),
        features=torch.cat([voxels(labelled), voxels(unlabelled)]).requires_grad_(),
        labels=torch.tensor(labels).reshape(1, 1, 2, 2),
        teacher_logits=teacher,
    )


def test_labelled_voxels_are_compared_with_the_memory_of_their_label():
    step = step_of([EAST, WEST, NORTH, NORTH], [WEST] * 4)
    value = LabelledContrastTerm(loss())(step)  # class 1: mean of 0 and 2; class 2: 0
    assert value.item() == pytest.approx(0.5, abs=1e-6)
    value.backward()
    assert step.features.grad[1].eq(0).all()


def test_unlabelled_voxels_are_compared_with_the_memory_of_their_pseudo_label():
    step = step_of([WEST] * 4, [EAST, NORTH, NORTH, EAST])  # class 1: mean of 0 and 1; class 2: mean of 0 and 1
    term = UnlabelledContrastTerm(loss())
    assert term(step).item() == pytest.approx(0.5, abs=1e-6)
    term(step).backward()
    assert step.features.grad[0].eq(0).all()


def test_labels_of_the_labelled_cases_have_no_influence_on_the_unlabelled_term():
    term = UnlabelledContrastTerm(loss())
    values = {term(step_of([WEST] * 4, [EAST, WEST, NORTH, EAST], labels=x)).item() for x in ([0] * 4, [2] * 4)}
    assert len(values) == 1


def test_teacher_decides_where_there_is_one():
    step = step_of([EAST] * 4, [EAST] * 4, guesses=(2, 2, 2, 2), teacher=confident([1, 1, 1, 1]))
    assert UnlabelledContrastTerm(loss())(step).item() == pytest.approx(0.0, abs=1e-6)
    without = step_of([EAST] * 4, [EAST] * 4, guesses=(2, 2, 2, 2))
    assert UnlabelledContrastTerm(loss())(without).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("confidence", "expected"), [(0.0, 1.0), (0.8, 0.0)])
def test_voxels_below_the_confidence_take_no_part(confidence, expected):
    step = step_of([EAST] * 4, [WEST] * 2 + [NORTH] * 2, probability=0.7)
    value = UnlabelledContrastTerm(loss(), confidence=confidence)(step)  # class 1: 2; class 2: 0
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_pseudo_labels_pass_no_gradient_to_the_logits():
    step = step_of([EAST] * 4, [WEST, EAST, NORTH, NORTH])
    logits = step.logits.clone().requires_grad_()
    UnlabelledContrastTerm(loss())(make_batch(logits, step.features, step.labels)).backward()
    assert logits.grad is None


def test_without_unlabelled_cases_the_term_is_zero_with_zero_gradient():
    full = step_of([EAST] * 4, [WEST] * 4)
    features = full.features[:1].detach().requires_grad_()
    value = UnlabelledContrastTerm(loss())(make_batch(full.logits[:1], features, full.labels))
    value.backward()
    assert value.item() == 0 and features.grad.eq(0).all()


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 1, 2)])
def test_without_labelled_cases_the_labelled_term_is_zero(shape):
    full = step_of([EAST] * 4, [WEST] * 4)
    features = torch.randn(2, 2, *shape, requires_grad=True)
    assert LabelledContrastTerm(loss())(make_batch(full.logits, features, full.labels[:0])).item() == 0


def test_labels_are_brought_to_coarser_features():
    """Labels 1, 2 along the last axis, twice as fine as the features."""
    labels = torch.tensor([1, 1, 2, 2]).repeat(1, 2, 2, 1)
    features = torch.tensor([EAST, NORTH]).T.reshape(1, 2, 1, 1, 2).repeat(1, 1, 2, 1, 1)
    logits = 20.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    step = make_batch(torch.cat([logits] * 2), torch.cat([features] * 2), labels)
    assert LabelledContrastTerm(loss())(step).item() == pytest.approx(0.0, abs=1e-6)
    assert UnlabelledContrastTerm(loss())(step).item() == pytest.approx(0.0, abs=1e-6)
    swapped = make_batch(step.logits, step.features.flip(-1), labels)
    assert LabelledContrastTerm(loss())(swapped).item() == pytest.approx(1.0, abs=1e-6)
    assert UnlabelledContrastTerm(loss())(swapped).item() == pytest.approx(1.0, abs=1e-6)


def warnings_of(term, steps, caplog):
    with caplog.at_level(logging.WARNING, "ContrastTerm"):
        for step in steps:
            term(step)
    return [record.getMessage() for record in caplog.records]


def test_a_contrast_without_a_pair_for_50_steps_says_so_once_with_what_is_missing(caplog):
    """Two kinds of voxels, but class 2 has one prototype and class 1 none: what happens with two classes."""
    memory = PrototypeMemory(3, 2, 2)
    memory.update({2: torch.tensor([[0.0, 1.0]])})
    term, step = LabelledContrastTerm(ContrastivePrototypeLoss(memory)), step_of([EAST] * 4, [EAST] * 4, (1, 1, 1, 2))
    assert warnings_of(term, [step] * 49, caplog) == []
    (message,) = warnings_of(term, [step] * 200, caplog)
    assert "LabelledContrastTerm has added nothing for 50 steps" in message
    assert "0 and 0 in class 0, 3 and 0 in class 1, 1 and 1 in class 2" in message
    assert "include_background" in message


def test_a_step_with_a_pair_starts_the_count_anew(caplog):
    empty, full = step_of([EAST] * 4, [WEST] * 4, probability=0.4), step_of([EAST] * 4, [WEST] * 4)
    assert warnings_of(UnlabelledContrastTerm(loss()), [*[empty] * 30, full, *[empty] * 49], caplog) == []
    assert len(warnings_of(UnlabelledContrastTerm(loss()), [full, *[empty] * 50], caplog)) == 1


def test_features_that_have_arrived_are_no_missing_pair(caplog):
    step = step_of([EAST, EAST, NORTH, NORTH], [EAST] * 4)
    assert LabelledContrastTerm(loss())(step).item() == 0
    assert warnings_of(LabelledContrastTerm(loss()), [step] * 60, caplog) == []
