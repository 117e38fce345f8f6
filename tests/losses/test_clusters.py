# SPDX-License-Identifier: Apache-2.0
"""Which voxels the cluster terms take, and under which class; the arithmetic is tested beneath."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.losses.contrast import CompactnessTerm, SeparationTerm
from scripts.networks.heads import ProjectionHead
from tests.losses.batches import make_batch

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
APART = 1 - math.sqrt(0.5)
"""Compactness of two directions at a right angle: their mean has the length sqrt(1/2)."""


def voxels(values):
    """Four vectors as maps `(1, C, 1, 2, 2)`."""
    return torch.tensor(values, dtype=torch.float32).T.reshape(1, -1, 1, 2, 2)


def confident(classes, probability):
    """Logits `(1, 3, 1, 2, 2)` that give each voxel's class that probability."""
    rest = (1 - probability) / 2
    return voxels([[probability if k == c else rest for k in range(3)] for c in classes]).log()


def step_of(labelled, unlabelled=(WEST, WEST, WEST, WEST), labels=(1, 1, 2, 2), guesses=(1, 1, 2, 2), probability=0.98):
    return make_batch(
        logits=torch.cat([confident([0] * 4, 0.9), confident(guesses, probability)]),
        features=torch.cat([voxels(labelled), voxels(unlabelled)]).requires_grad_(),
        labels=torch.tensor(labels).reshape(1, 1, 2, 2),
    )


def test_compactness_of_labelled_voxels_by_label():
    step = step_of([EAST, NORTH, NORTH, NORTH])  # class 1: right angle; class 2: one direction
    value = CompactnessTerm()(step)
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)
    value.backward()
    assert step.features.grad[0].ne(0).any() and step.features.grad[1].eq(0).all()


def test_separation_of_labelled_voxels_by_label():
    step = step_of([EAST, EAST, NORTH, NORTH])
    assert SeparationTerm()(step).item() == pytest.approx(0.0, abs=1e-6)
    assert SeparationTerm(margin=1.5)(step).item() == pytest.approx(0.5, abs=1e-6)
    step = step_of([EAST, EAST, EAST, EAST])
    value = SeparationTerm()(step)
    assert value.item() == pytest.approx(1.0, abs=1e-6)


def test_separation_pushes_classes_apart():
    step = step_of([EAST, EAST, [1.0, 0.2], [1.0, 0.2]])
    SeparationTerm()(step).backward()
    up = step.features.grad[0, 1].flatten()  # a step goes against the gradient
    assert up[:2].gt(0).all() and up[2:].lt(0).all()


def test_unlabelled_voxels_join_their_pseudo_label_where_that_is_asked_for():
    step = step_of([EAST, EAST, NORTH, NORTH], [NORTH, NORTH, NORTH, NORTH])
    assert CompactnessTerm()(step).item() == pytest.approx(0.0, abs=1e-6)
    value = CompactnessTerm(unlabelled=True)(step)  # class 1: two east, two north
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)
    value.backward()
    assert step.features.grad[1].ne(0).any()


def test_unlabelled_voxels_below_the_confidence_stay_out():
    step = step_of([EAST, EAST, NORTH, NORTH], [NORTH] * 4, probability=0.8)
    assert CompactnessTerm(unlabelled=True)(step).item() == pytest.approx(0.0, abs=1e-6)
    value = CompactnessTerm(unlabelled=True, confidence=0.7)(step)
    assert value.item() == pytest.approx(APART / 2, abs=1e-6)


class OneDirection(nn.Module):
    """A head that sends every row the same way."""

    def forward(self, rows):
        return rows.abs() @ torch.ones(2, 2)


@pytest.mark.parametrize(("term", "plain", "projected"), [(CompactnessTerm, APART, 0.0), (SeparationTerm, 0.0, 1.0)])
def test_projected_rows_are_compared_where_there_is_a_head(term, plain, projected):
    step = step_of([EAST, NORTH, EAST, NORTH] if term is CompactnessTerm else [EAST, EAST, NORTH, NORTH])
    assert term()(step).item() == pytest.approx(plain, abs=1e-6)
    assert term(projection_head=OneDirection())(step).item() == pytest.approx(projected, abs=1e-6)


@pytest.mark.parametrize("term", [CompactnessTerm, SeparationTerm])
def test_gradient_reaches_the_head(term):
    torch.manual_seed(0)
    head = ProjectionHead(2, 3)
    term(projection_head=head)(step_of([EAST, NORTH, [0.5, 0.4], WEST])).backward()
    assert head[0].weight.grad.ne(0).any()


def test_at_most_so_many_voxels_of_a_class_enter():
    rows = []

    class Count(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x

    step = step_of([EAST] * 4, labels=(1, 1, 1, 2))
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


def test_one_class_alone_has_nothing_to_be_apart_from():
    step = step_of([EAST, NORTH, WEST, EAST], labels=(1, 1, 1, 1))
    value = SeparationTerm()(step)
    value.backward()
    assert value.item() == 0 and step.features.grad.eq(0).all()


def test_labels_are_brought_to_coarser_features():
    """Four voxels a row, two cells: each takes the label of its second voxel, 1."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 1, 2).requires_grad_()
    step = make_batch(torch.zeros(1, 3, 1, 1, 4), features, torch.tensor([2, 1, 0, 1]).reshape(1, 1, 1, 4))
    assert CompactnessTerm()(step).item() == pytest.approx(APART, abs=1e-6)


def test_margin_that_is_no_distance_is_refused():
    with pytest.raises(ValueError, match=r"margin.*2\.5"):
        SeparationTerm(margin=2.5)
