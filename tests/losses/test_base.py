# SPDX-License-Identifier: Apache-2.0
"""The batch, the weights of the terms, and what is logged."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.base import LossTerm, WeightedLoss
from scripts.losses.schedules import RampUp
from tests.losses.batches import make_batch


class Fixed(LossTerm):
    """A term of fixed value that counts its calls and keeps its batch."""

    def __init__(self, value, weight=1.0):
        super().__init__(weight)
        self.value, self.calls, self.batch = value, 0, None

    def forward(self, batch):
        self.calls, self.batch = self.calls + 1, batch
        return batch.logits.mean() * 0 + self.value


def some_batch(labelled=1, unlabelled=2, teacher_logits=None):
    cases = labelled + unlabelled
    logits = torch.arange(cases * 2.0 * 24).reshape(cases, 2, 2, 3, 4).requires_grad_()
    features = torch.arange(cases * 5.0 * 24).reshape(cases, 5, 2, 3, 4)
    return make_batch(logits, features, torch.ones(labelled, 2, 3, 4, dtype=torch.int64), teacher_logits)


def test_sum_is_weighted():
    loss = WeightedLoss({"a": Fixed(2.0, 0.5), "b": Fixed(3.0, 4.0), "c": Fixed(1.0)}, max_steps=10)
    assert loss(some_batch()).item() == pytest.approx(1.0 + 12.0 + 1.0)


def test_term_of_weight_zero_is_not_computed_and_not_logged():
    off, on = Fixed(2.0, 0.0), Fixed(3.0)
    loss = WeightedLoss({"off": off, "on": on}, max_steps=10)
    total = loss(some_batch())
    assert (off.calls, on.calls) == (0, 1)
    assert loss.scalars(total) == {"Loss/total": 3.0, "Loss/on": 3.0}


def test_scalars_are_the_unweighted_values_by_name():
    loss = WeightedLoss({"supervised": Fixed(2.0, 0.5), "contrast": Fixed(0.25, 2.0)}, max_steps=10)
    assert loss.scalars(loss(some_batch())) == {"Loss/total": 1.5, "Loss/supervised": 2.0, "Loss/contrast": 0.25}


def test_scalars_are_those_of_the_last_call():
    late = Fixed(2.0, RampUp(1.0, start=0.5, end=0.5))
    loss = WeightedLoss({"early": Fixed(1.0), "late": late}, max_steps=10)
    loss.step = 6
    assert set(loss.scalars(loss(some_batch()))) == {"Loss/total", "Loss/early", "Loss/late"}
    loss.step = 5
    assert set(loss.scalars(loss(some_batch()))) == {"Loss/total", "Loss/early"}


def test_weights_follow_the_step_and_the_length_of_the_run():
    values = []
    for max_steps in (10, 100):
        loss = WeightedLoss({"a": Fixed(1.0, RampUp(2.0, start=0.0, end=0.4))}, max_steps=max_steps)
        loss.step = 2
        values.append(loss(some_batch()).item())
    assert values == pytest.approx([2 * math.exp(-1.25), 2 * math.exp(-5 * 0.95**2)])


def test_terms_receive_the_very_batch():
    term, batch = Fixed(1.0), some_batch()
    WeightedLoss({"a": term}, max_steps=1)(batch, torch.ones(1, 1, 2, 3, 4))  # MONAI's trainer passes the labels too
    assert term.batch is batch


def test_batch_divides_labelled_and_unlabelled_cases():
    teacher_logits = torch.randn(2, 2, 2, 3, 4)
    batch = some_batch(labelled=1, unlabelled=2, teacher_logits=teacher_logits)
    assert (batch.num_labelled, batch.num_unlabelled) == (1, 2)
    assert torch.equal(batch.labelled_logits, batch.logits[:1])
    assert torch.equal(batch.unlabelled_logits, batch.logits[1:])
    assert torch.equal(batch.labelled_features, batch.features[:1])
    assert torch.equal(batch.unlabelled_features, batch.features[1:])
    assert torch.equal(batch.labelled_images, batch.images[:1])
    assert torch.equal(batch.unlabelled_images, batch.images[1:])
    assert torch.equal(batch.target_logits, teacher_logits)


def test_targets_without_a_teacher_are_the_networks_own_without_gradient():
    batch = some_batch()
    assert torch.equal(batch.target_logits, batch.logits[1:])
    assert not batch.target_logits.requires_grad


def test_total_passes_gradients_and_logging_keeps_no_graph():
    batch = some_batch()

    class Mean(LossTerm):
        def forward(self, batch):
            return batch.logits.mean()

    loss = WeightedLoss({"mean": Mean(3.0)}, max_steps=1)
    loss(batch).backward()
    torch.testing.assert_close(batch.logits.grad, torch.full((3, 2, 2, 3, 4), 3.0 / 144))
    assert all(type(value) is float for value in loss.last.values())


def test_a_step_in_which_every_weight_is_zero_can_still_be_run():
    batch = some_batch()
    loss = WeightedLoss({"late": Fixed(2.0, RampUp(1.0, start=0.9, end=1.0))}, max_steps=100)
    total = loss(batch)
    total.backward()
    assert total.item() == 0 and batch.logits.grad.eq(0).all()


def test_list_without_terms_is_refused():
    with pytest.raises(ValueError, match="loss term"):
        WeightedLoss({}, max_steps=1)


def test_something_else_in_the_list_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'dice'.*LossTerm.*Linear"):
        WeightedLoss({"dice": torch.nn.Linear(1, 1)}, max_steps=1)


def test_parameters_of_a_terms_modules_are_parameters_of_the_list():
    class WithHead(Fixed):
        def __init__(self):
            super().__init__(1.0)
            self.head = torch.nn.Linear(2, 3)

    assert sum(p.numel() for p in WeightedLoss({"a": WithHead()}, max_steps=1).parameters()) == 9


def test_terms_are_computed_in_the_order_in_which_they_are_listed():
    """Heads shared by two terms record running statistics of both: the last one listed counts most."""
    order = []

    class Noting(Fixed):
        def forward(self, batch):
            order.append(self.value)
            return super().forward(batch)

    WeightedLoss({"b": Noting(1.0), "a": Noting(2.0), "c": Noting(3.0)}, 10)(some_batch())
    assert order == [1.0, 2.0, 3.0]
