# SPDX-License-Identifier: Apache-2.0
"""Compactness and separation of a few directions in the plane."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.prototypes.loss import compactness, separation
from scripts.prototypes.voxels import NO_CLASS

EAST, NORTH, WEST = [2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]


def features(*rows):
    return torch.tensor(rows, requires_grad=True)


def labels(*classes):
    return torch.tensor(classes)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_compactness_is_0_for_one_direction_and_1_where_directions_cancel_out():
    assert compactness(features(EAST, [7.0, 0.0]), labels(1, 1), 2).item() == pytest.approx(0, abs=1e-6)
    assert compactness(features(EAST, WEST), labels(1, 1), 2).item() == pytest.approx(1, abs=1e-6)
    # east and north: the mean of the unit embeddings is (1/2, 1/2)
    assert compactness(features(EAST, NORTH), labels(1, 1), 2).item() == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)


def test_compactness_is_the_mean_cosine_distance_to_the_mean_direction_class_by_class():
    torch.manual_seed(0)
    rows, classes = torch.randn(9, 4), labels(0, 0, 0, 0, 0, 0, 2, 2, 2)
    by_class = []
    for c in (0, 2):
        own = rows[classes == c]
        mean = sum(row / row.norm() for row in own)
        by_class.append(sum(1 - cosine(row, mean) for row in own) / len(own))
    assert compactness(rows, classes, 3).item() == pytest.approx(sum(by_class) / 2, abs=1e-6)


def test_a_class_with_one_embedding_does_not_make_the_others_look_compact():
    value = compactness(features(EAST, WEST, NORTH), labels(1, 1, 2), 3)
    assert value.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.0), (1.0, 0.0), (1.5, 0.5), (2.0, 1.0)])
def test_separation_of_orthogonal_classes_is_what_the_margin_asks_beyond_1(margin, expected):
    value = separation(features(EAST, NORTH), labels(0, 1), 2, margin)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_separation_is_the_mean_over_pairs_of_classes():
    # distances of the means: east-north 1, east-west 2, north-west 1; with margin 1.5 they lack 0.5, 0 and 0.5
    value = separation(features(EAST, NORTH, WEST, EAST), labels(0, 1, 3, 0), 4, margin=1.5)
    assert value.item() == pytest.approx(1 / 3, abs=1e-6)


def test_a_descent_step_pulls_a_class_together_and_pushes_two_apart():
    rows, classes = features([1.0, 0.2], [1.0, -0.2], [1.0, 0.5], [0.9, 0.8]), labels(0, 0, 1, 1)
    for loss in (lambda x: compactness(x, classes, 2), lambda x: separation(x, classes, 2)):
        value = loss(rows)
        (gradient,) = torch.autograd.grad(value, rows)
        assert (gradient.norm(dim=1) > 1e-3).all()
        assert loss(rows - 0.1 * gradient) < value - 1e-4


def test_classes_beyond_the_margin_are_left_alone():
    rows = features(EAST, WEST)
    separation(rows, labels(0, 1), 2, margin=1.0).backward()
    assert rows.grad.eq(0).all()


def test_length_of_a_feature_does_not_matter():
    torch.manual_seed(1)
    rows, classes = torch.randn(8, 3), labels(0, 0, 0, 1, 1, 1, 2, 2)
    scaled = rows * torch.rand(8, 1).add(0.1)
    torch.testing.assert_close(compactness(scaled, classes, 3), compactness(rows, classes, 3))
    torch.testing.assert_close(separation(scaled, classes, 3), separation(rows, classes, 3))


@pytest.mark.parametrize("function", [compactness, separation])
def test_embeddings_of_no_class_take_no_part(function):
    rows = features(EAST, NORTH, WEST, [math.nan, 0.0])
    value = function(rows, labels(0, 0, NO_CLASS, NO_CLASS), 2)
    torch.testing.assert_close(value, function(rows[:2], labels(0, 0), 2))
    value.backward()
    assert rows.grad[2:].eq(0).all()


@pytest.mark.parametrize(
    ("function", "classes"),
    [
        *((function, (NO_CLASS, NO_CLASS)) for function in (compactness, separation)),
        (compactness, (0, 1)),  # no class has two embeddings
        (separation, (1, 1)),  # no second class
    ],
)
def test_where_nothing_contributes_the_value_and_the_gradient_are_0(function, classes):
    rows = features(EAST, NORTH)
    value = function(rows, labels(*classes), 2)
    value.backward()
    assert value.item() == 0 and rows.grad.eq(0).all()
    assert function(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 2).item() == 0


@pytest.mark.parametrize("function", [compactness, separation])
def test_zero_and_cancelling_embeddings_have_a_finite_gradient(function):
    rows = features([0.0, 0.0], [0.0, 0.0], EAST, WEST)
    function(rows, labels(0, 0, 1, 1), 2).backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("function", [compactness, separation])
def test_embeddings_and_labels_that_do_not_belong_together_are_refused(function):
    with pytest.raises(ValueError, match=r"\[0, 2\).* 0 to 2"):
        function(features(EAST, NORTH), labels(0, 2), 2)
    with pytest.raises(ValueError, match="2 embeddings and 3 labels"):
        function(features(EAST, NORTH), labels(0, 1, 1), 2)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        function(torch.zeros(1, 2, 3), labels(0), 2)


@pytest.mark.parametrize("margin", [0.0, -1.0, 2.1])
def test_a_margin_that_no_distance_can_meet_is_refused(margin):
    with pytest.raises(ValueError, match=f"margin.*{margin}"):
        separation(features(EAST, NORTH), labels(0, 1), 2, margin)
