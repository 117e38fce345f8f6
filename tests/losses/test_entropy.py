# SPDX-License-Identifier: Apache-2.0
"""Entropy of a few voxels, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.unlabelled import EntropyTerm
from tests.losses.batches import make_batch


def step_of(*probabilities, labelled=1):
    """Labelled cases on the fence, then one unlabelled case `(1, K, 1, 1, N)` with these probabilities."""
    unlabelled = torch.tensor(probabilities).log().T.reshape(1, len(probabilities[0]), 1, 1, -1)
    logits = torch.cat([torch.zeros_like(unlabelled)] * labelled + [unlabelled]).requires_grad_()
    labels = torch.zeros(labelled, *logits.shape[2:], dtype=torch.int64)
    return make_batch(logits, torch.zeros(len(logits), 3, *logits.shape[2:]), labels)


def test_it_is_the_mean_entropy_over_log_k_of_the_unlabelled_voxels_alone():
    step = step_of([0.5, 0.25, 0.25], [0.75, 0.125, 0.125])
    first = 0.5 * math.log(2) + 0.5 * math.log(4)
    second = 0.75 * math.log(4 / 3) + 0.25 * math.log(8)
    value = EntropyTerm()(step)
    assert value.item() == pytest.approx((first + second) / 2 / math.log(3), abs=1e-6)
    value.backward()
    assert step.logits.grad[0].eq(0).all() and step.logits.grad[1].ne(0).any()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_indecision_is_one_for_any_number_of_classes(classes):
    assert EntropyTerm()(step_of([1 / classes] * classes)).item() == pytest.approx(1.0, abs=1e-6)


def test_certainty_is_zero_and_its_gradient_finite():
    logits = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1, 1).requires_grad_()
    value = EntropyTerm()(make_batch(logits, torch.zeros(1, 1, 1, 1, 1), torch.zeros(0, 1, 1, 1).long()))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6) and logits.grad.isfinite().all()


def test_a_step_towards_lower_entropy_makes_the_likelier_class_likelier():
    step = step_of([0.6, 0.4])
    EntropyTerm()(step).backward()
    gradient = step.logits.grad[1].flatten()
    assert gradient[0] < 0 < gradient[1]


def test_no_unlabelled_case_gives_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 1, 1, 4, requires_grad=True)
    value = EntropyTerm()(make_batch(logits, torch.zeros(2, 1, 1, 1, 4), torch.zeros(2, 1, 1, 4).long()))
    value.backward()
    assert value.item() == 0 and logits.grad.eq(0).all()
