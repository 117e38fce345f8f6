# SPDX-License-Identifier: Apache-2.0
"""Weights, schedules and what is logged."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.base import LossTerm, WeightedLoss
from scripts.losses.schedules import RampUp
from tests.losses.batches import make_batch


class Fixed(LossTerm):
    """A term with a value of its own that counts how often it is asked and keeps what it was given."""

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


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 0.0),
        (19, 0.0),
        (20, 2 * math.exp(-5)),
        (40, 2 * math.exp(-1.25)),
        (60, 2.0),
        (100, 2.0),
    ],
)
def test_rampup_waits_climbs_and_stays(step, expected):
    assert RampUp(2.0, start=0.2, end=0.6).at(step, 100) == pytest.approx(expected, rel=1e-9)


def test_rampup_scales_with_the_run():
    ramp = RampUp(3.0, 0.1, 0.5)
    assert ramp.at(30, 100) == pytest.approx(ramp.at(300, 1000)) == pytest.approx(3 * math.exp(-1.25))


def test_rampup_without_length_is_a_switch():
    ramp = RampUp(2.0, start=0.5, end=0.5)
    assert [ramp.at(step, 10) for step in (1, 4, 5, 10)] == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.4), (0.5, 0.4), (0.1, 1.1)])
def test_rampup_with_impossible_fractions_is_refused(start, end):
    with pytest.raises(ValueError, match=f"start.*{start}.*end.*{end}"):
        RampUp(1.0, start, end)


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
    loss.step = 5
    assert set(loss.scalars(loss(some_batch()))) == {"Loss/total", "Loss/early", "Loss/late"}
    loss.step = 4
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


@pytest.mark.parametrize("max_steps", [15000, 1500, 100])
def test_a_staircase_climbs_as_the_published_codes_and_scales_with_the_run(max_steps):
    ramp = RampUp(2.0, end=0.4, stairs=40)
    width = max_steps // 100  # a stair; the codes' 150 of 15,000
    for stair in (0, 1, 3, 7, 39, 40, 70):
        expected = 2.0 * math.exp(-5 * (1 - min(stair, 40) / 40) ** 2)
        assert ramp.at(stair * width + 1, max_steps) == pytest.approx(expected)
        assert ramp.at((stair + 1) * width, max_steps) == pytest.approx(expected)


def test_a_staircase_may_start_late_and_may_have_no_length():
    late = RampUp(1.0, start=0.5, end=0.7, stairs=2)
    weights = [late.at(step, 100) for step in (49, 51, 60, 61, 70, 71)]
    assert weights == pytest.approx([0.0, math.exp(-5), math.exp(-5), math.exp(-1.25), math.exp(-1.25), 1.0])
    assert RampUp(1.0, start=0.5, end=0.5, stairs=4).at(51, 100) == 1.0


def test_negative_stairs_are_refused():
    with pytest.raises(ValueError, match="stairs"):
        RampUp(1.0, stairs=-1)


def test_terms_are_computed_in_the_order_in_which_they_are_listed():
    """Heads shared by two terms record running statistics of both: the last one listed counts most."""
    order = []

    class Noting(Fixed):
        def forward(self, batch):
            order.append(self.value)
            return super().forward(batch)

    WeightedLoss({"b": Noting(1.0), "a": Noting(2.0), "c": Noting(3.0)}, 10)(some_batch())
    assert order == [1.0, 2.0, 3.0]
