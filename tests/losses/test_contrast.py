# SPDX-License-Identifier: Apache-2.0
"""Which voxels the contrast and cluster losses use, and with which class."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from scripts.losses.contrast import CompactnessTerm, LabelledContrastTerm, SeparationTerm, UnlabelledContrastTerm
from scripts.networks.heads import ProjectionHead
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from tests.losses.batches import make_batch


def loss():
    """Prototypes of class 1 point east, those of class 2 north; class 0 has none."""
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


def test_pseudo_labels_come_from_the_teacher_if_there_is_one():
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
    """Class 2 has one prototype and class 1 none, so no class has a pair."""
    memory = PrototypeMemory(3, 2, 2)
    memory.update({2: torch.tensor([[0.0, 1.0]])})
    term, step = LabelledContrastTerm(ContrastivePrototypeLoss(memory)), step_of([EAST] * 4, [EAST] * 4, (1, 1, 1, 2))
    assert warnings_of(term, [step] * 49, caplog) == []
    (message,) = warnings_of(term, [step] * 200, caplog)
    assert "LabelledContrastTerm" in message and "50 steps" in message
    assert "0 and 0 in class 0, 3 and 0 in class 1, 1 and 1 in class 2" in message
    assert "include_background" in message


def test_a_step_with_a_pair_resets_the_count(caplog):
    empty, full = step_of([EAST] * 4, [WEST] * 4, probability=0.4), step_of([EAST] * 4, [WEST] * 4)
    assert warnings_of(UnlabelledContrastTerm(loss()), [*[empty] * 30, full, *[empty] * 49], caplog) == []
    assert len(warnings_of(UnlabelledContrastTerm(loss()), [full, *[empty] * 50], caplog)) == 1


def test_a_loss_of_zero_with_pairs_is_not_reported(caplog):
    step = step_of([EAST, EAST, NORTH, NORTH], [EAST] * 4)
    assert LabelledContrastTerm(loss())(step).item() == 0
    assert warnings_of(LabelledContrastTerm(loss()), [step] * 60, caplog) == []


APART = 1 - math.sqrt(0.5)
"""Compactness of two directions at a right angle: their mean has the length sqrt(1/2)."""


def clusters_of(labelled, unlabelled=(WEST,) * 4, labels=(1, 1, 2, 2), guesses=(1, 1, 2, 2), probability=0.98):
    return make_batch(
        logits=torch.cat([confident([0] * 4, 0.9), confident(guesses, probability)]),
        features=torch.cat([voxels(labelled), voxels(unlabelled)]).requires_grad_(),
        labels=torch.tensor(labels).reshape(1, 1, 2, 2),
    )


def test_compactness_of_labelled_voxels_by_label():
    step = clusters_of([EAST, NORTH, NORTH, NORTH])  # class 1: right angle; class 2: one direction
    value = CompactnessTerm()(step)
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)
    value.backward()
    assert step.features.grad[0].ne(0).any() and step.features.grad[1].eq(0).all()


def test_separation_of_labelled_voxels_by_label():
    step = clusters_of([EAST, EAST, NORTH, NORTH])
    assert SeparationTerm()(step).item() == pytest.approx(0.0, abs=1e-6)
    assert SeparationTerm(margin=1.5)(step).item() == pytest.approx(0.5, abs=1e-6)
    step = clusters_of([EAST, EAST, EAST, EAST])
    value = SeparationTerm()(step)
    assert value.item() == pytest.approx(1.0, abs=1e-6)


def test_separation_pushes_classes_apart():
    step = clusters_of([EAST, EAST, [1.0, 0.2], [1.0, 0.2]])
    SeparationTerm()(step).backward()
    up = step.features.grad[0, 1].flatten()  # a step goes against the gradient
    assert up[:2].gt(0).all() and up[2:].lt(0).all()


def test_unlabelled_voxels_are_used_with_their_pseudo_label_on_request():
    step = clusters_of([EAST, EAST, NORTH, NORTH], [NORTH, NORTH, NORTH, NORTH])
    assert CompactnessTerm()(step).item() == pytest.approx(0.0, abs=1e-6)
    value = CompactnessTerm(unlabelled=True)(step)  # class 1: two east, two north
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)
    value.backward()
    assert step.features.grad[1].ne(0).any()


def test_unlabelled_voxels_below_the_confidence_stay_out():
    step = clusters_of([EAST, EAST, NORTH, NORTH], [NORTH] * 4, probability=0.8)
    assert CompactnessTerm(unlabelled=True)(step).item() == pytest.approx(0.0, abs=1e-6)
    value = CompactnessTerm(unlabelled=True, confidence=0.7)(step)
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)


class OneDirection(nn.Module):
    """A head that gives every embedding the same direction."""

    def forward(self, rows):
        return rows.abs() @ torch.ones(2, 2)


@pytest.mark.parametrize(("term", "plain", "projected"), [(CompactnessTerm, APART, 0.0), (SeparationTerm, 0.0, 1.0)])
def test_head_projects_embeddings_before_they_are_compared(term, plain, projected):
    step = clusters_of([EAST, NORTH, EAST, NORTH] if term is CompactnessTerm else [EAST, EAST, NORTH, NORTH])
    assert term()(step).item() == pytest.approx(plain, abs=1e-6)
    assert term(projection_head=OneDirection())(step).item() == pytest.approx(projected, abs=1e-6)


@pytest.mark.parametrize("term", [CompactnessTerm, SeparationTerm])
def test_gradient_reaches_the_head(term):
    torch.manual_seed(0)
    head = ProjectionHead(2, 3)
    term(projection_head=head)(clusters_of([EAST, NORTH, [0.5, 0.4], WEST])).backward()
    assert head[0].weight.grad.ne(0).any()


def test_samples_per_class_limits_the_voxels_of_a_class():
    rows = []

    class Count(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x

    step = clusters_of([EAST] * 4, labels=(1, 1, 1, 2))
    CompactnessTerm(projection_head=Count(), samples_per_class=2)(step)
    CompactnessTerm(projection_head=Count(), samples_per_class=None)(step)
    assert rows == [3, 4]


@pytest.mark.parametrize("term", [CompactnessTerm, SeparationTerm])
def test_a_step_without_labelled_cases_gives_zero_with_zero_gradient(term):
    features = torch.randn(2, 3, 1, 2, 2, requires_grad=True)
    step = make_batch(torch.randn(2, 3, 1, 2, 2), features, torch.zeros(0, 1, 2, 2, dtype=torch.int64))
    value = term(projection_head=ProjectionHead(3, 3))(step)
    value.backward()
    assert value.item() == 0 and features.grad.eq(0).all()


def test_separation_of_a_single_class_is_zero():
    step = clusters_of([EAST, NORTH, WEST, EAST], labels=(1, 1, 1, 1))
    value = SeparationTerm()(step)
    value.backward()
    assert value.item() == 0 and step.features.grad.eq(0).all()


def test_cluster_terms_bring_labels_to_coarser_features():
    """Four voxels along an axis, two cells: each takes the label of its second voxel, 1."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 1, 2).requires_grad_()
    step = make_batch(torch.zeros(1, 3, 1, 1, 4), features, torch.tensor([2, 1, 0, 1]).reshape(1, 1, 1, 4))
    assert CompactnessTerm()(step).item() == pytest.approx(APART, abs=1e-6)


def test_margin_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"margin.*2\.5"):
        SeparationTerm(margin=2.5)
