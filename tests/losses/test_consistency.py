# SPDX-License-Identifier: Apache-2.0
"""Consistency with the teacher on two voxels, by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.unlabelled import ConsistencyTerm
from tests.losses.batches import make_batch


def logits_of(*probabilities):
    """Logits `(1, K, 1, 1, N)` whose softmax is `probabilities`."""
    return torch.tensor(probabilities).log().T.reshape(1, len(probabilities[0]), 1, 1, -1)


def step_of(student, teacher):
    return make_batch(
        logits=torch.cat([torch.zeros_like(logits_of(*student)), logits_of(*student)]).requires_grad_(),
        features=torch.zeros(2, 3, 1, 1, 2),
        labels=torch.zeros(1, 1, 1, 2, dtype=torch.int64),
        teacher_logits=logits_of(*teacher).requires_grad_(),
    )


def test_it_is_the_mean_squared_difference_of_probabilities():
    step = step_of(student=[[0.4, 0.6], [0.8, 0.2]], teacher=[[0.1, 0.9], [0.9, 0.1]])
    value = ConsistencyTerm()(step)
    assert value.item() == pytest.approx((0.3**2 + 0.3**2 + 0.1**2 + 0.1**2) / 4, abs=1e-6)
    value.backward()
    assert step.teacher_logits.grad is None
    assert step.logits.grad[0].eq(0).all() and step.logits.grad[1].abs().sum() > 0


def test_logits_that_differ_by_a_constant_agree():
    step = step_of(student=[[0.4, 0.6], [0.8, 0.2]], teacher=[[0.4, 0.6], [0.8, 0.2]])
    shifted = make_batch(step.logits, step.features, step.labels, step.teacher_logits + 3.0)
    assert ConsistencyTerm()(shifted).item() == pytest.approx(0.0, abs=1e-10)


def test_opposite_certainties_reach_the_upper_bound():
    step = step_of(student=[[1.0, 1e-30], [1.0, 1e-30]], teacher=[[1e-30, 1.0], [1e-30, 1.0]])
    assert ConsistencyTerm()(step).item() == pytest.approx(1.0)


def test_no_unlabelled_case_gives_zero_with_zero_gradient():
    logits = torch.randn(1, 2, 1, 1, 4, requires_grad=True)
    step = make_batch(logits, torch.zeros(1, 3, 1, 1, 4), torch.zeros(1, 1, 1, 4, dtype=torch.int64))
    value = ConsistencyTerm()(step)
    value.backward()
    assert value.item() == 0 and logits.grad.eq(0).all()
