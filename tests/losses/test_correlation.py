# SPDX-License-Identifier: Apache-2.0
"""Covariances and their distances by hand; CORN's term on voxels with one feature, where a covariance is a variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.errors import UserError
from scripts.losses.correlation import (
    CorrelationTerm,
    correlation_distance,
    covariance,
    cross_view_entropy,
    pool_distances,
)
from scripts.networks.heads import ProjectionHead
from scripts.prototypes.memory import PrototypeMemory
from tests.losses.batches import make_batch

SLANTED = torch.tensor([[2.0, 4.0], [4.0, 8.0]])


def test_covariance_is_about_the_mean_with_divisor_n_minus_one():
    assert torch.equal(covariance(torch.tensor([[1.0, 0.0], [3.0, 4.0]])), SLANTED)
    three = covariance(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(three, torch.tensor([[3.0, -1.5], [-1.5, 3.0]]))


def test_covariance_of_bfloat16_embeddings_is_computed_in_float32():
    rows = torch.tensor([[100.0, 1.0], [101.0, 2.0]], dtype=torch.bfloat16)
    assert covariance(rows).dtype == torch.float32 and covariance(rows)[0, 1] == 0.5
    assert covariance(rows.double()).dtype == torch.float64


def test_distance_is_the_squared_frobenius_norm_over_4_d_squared():
    assert correlation_distance(SLANTED, torch.zeros(2, 2)).item() == 100 / 16
    assert correlation_distance(torch.eye(3), torch.ones(3, 3)).item() == pytest.approx(6 / 36)
    assert correlation_distance(SLANTED, SLANTED).item() == 0


def test_every_covariance_is_compared_with_every_pool():
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    distances = pool_distances([zero, 3 * one], [zero, one, 5 * one])
    assert distances.tolist() == pytest.approx([0, 1 / 4, 25 / 4, 9 / 4, 4 / 4, 4 / 4])


def test_cross_view_entropy_takes_the_second_view_as_it_is():
    log_sum = math.log(1 + math.e)
    value = cross_view_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert value.item() == pytest.approx((1 * log_sum - 3 * (1 - log_sum)) / 2, rel=1e-6)


def test_cross_view_entropy_lowers_the_second_views_distances():
    first, second = torch.tensor([0.1, 0.2], requires_grad=True), torch.tensor([0.3, 0.1], requires_grad=True)
    cross_view_entropy(first, second).backward()
    assert second.grad.gt(0).all()
    assert first.grad.abs().max() < second.grad.min()


POOL = {0: [[-1.0], [1.0]], 1: [[5.0], [9.0]]}
"""Variances 2 and 8; class 2 has no prototypes."""


def pool_of(rows=POOL, dim=1):
    pool = PrototypeMemory(3, dim, 8, strategy="fifo")
    pool.update({c: torch.tensor(values) for c, values in rows.items()})
    return pool


def maps(values):
    """One embedding per voxel to maps `(1, C, 1, 1, N)`."""
    return torch.tensor(values, dtype=torch.float32).T.reshape(1, len(values[0]), 1, 1, -1)


def logits_of(classes, probability=0.98):
    rest = (1 - probability) / 2
    return maps([[probability if k == c else rest for k in range(3)] for c in classes]).log()


class Step:
    """A step of one labelled and one unlabelled case, whose further pass gives the second view."""

    def __init__(self, first, second, classes, second_classes=None, probability=0.98, second_probability=0.98):
        self.first, self.second = maps(first).requires_grad_(), maps(second).requires_grad_()
        self.weak, self.seen = torch.randn(1, 1, 1, 1, len(classes)), []
        second_logits = logits_of(second_classes or classes, second_probability)

        def forward_pass(images, keep_statistics=True, fixed_parameters=False):
            assert keep_statistics
            self.seen.append(images)
            return second_logits, self.second

        self.data = make_batch(
            logits=torch.cat([logits_of([2] * len(classes)), logits_of(classes, probability)]).requires_grad_(),
            features=torch.cat([torch.full_like(self.first, 100.0), self.first]),
            labels=torch.zeros(1, 1, 1, len(classes), dtype=torch.int64),
            weak_images=self.weak,
            forward_pass=forward_pass,
        )


def test_two_views_are_compared_with_their_classes_pool_and_with_each_other():
    """Class 0 has variances 2 and 0 beside 2, class 1 has 2 and 18 beside 8; distances are (a - b)^2 / 4."""
    step = Step([[3], [5], [0], [2]], [[4], [4], [0], [6]], classes=[0, 0, 1, 1])
    zero = (0 + 2**2 / 4) / 2 + 2**2 / 4
    one = (6**2 / 4 + 10**2 / 4) / 2 + 16**2 / 4
    assert CorrelationTerm(pool_of())(step.data).item() == pytest.approx((zero + one) / 2, rel=1e-5)
    assert len(step.seen) == 1 and step.seen[0] is step.weak


def test_equal_covariances_have_no_loss_for_any_means():
    step = Step([[3], [5], [0], [4]], [[-7], [-5], [40], [36]], classes=[0, 0, 1, 1])
    assert CorrelationTerm(pool_of())(step.data).item() == pytest.approx(0.0, abs=1e-6)


def test_published_form_compares_every_class_with_every_pool():
    step = Step([[3], [5], [0], [2]], [[4], [4], [0], [6]], classes=[0, 0, 1, 1])
    first = torch.tensor([0.0, 36, 0, 36]) / 4  # variances 2, 2 against 2, 8
    second = torch.tensor([4.0, 64, 256, 100]) / 4  # variances 0, 18 against 2, 8
    expected = -(second * first.log_softmax(dim=0)).sum() / 4
    value = CorrelationTerm(pool_of(), form="reference")(step.data)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_voxels_on_which_the_views_disagree_take_no_part():
    """The last two voxels would change both variances."""
    step = Step([[3], [5], [90], [80]], [[4], [6], [90], [80]], classes=[0, 0, 0, 1], second_classes=[0, 0, 1, 0])
    assert CorrelationTerm(pool_of())(step.data).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("unsure", [{"probability": 0.8}, {"second_probability": 0.8}])
def test_both_views_must_be_confident(unsure):
    step = Step([[3], [9]], [[3], [9]], classes=[0, 0], **unsure)
    assert CorrelationTerm(pool_of(), confidence=0.9)(step.data).item() == 0
    assert CorrelationTerm(pool_of(), confidence=0.7)(step.data).item() > 0


@pytest.mark.parametrize("form", ["aligned", "reference"])
def test_gradient_reaches_both_views_and_not_the_pool(form):
    step, pool = Step([[3], [6], [0], [2]], [[4], [8], [0], [6]], classes=[0, 0, 1, 1]), pool_of()
    CorrelationTerm(pool, form=form)(step.data).backward()
    assert step.first.grad.ne(0).any() and step.second.grad.ne(0).any()
    assert not pool.features.requires_grad and pool.summary() == {0: 2, 1: 2, 2: 0}


def test_a_step_down_brings_the_variance_to_the_pools():
    step = Step([[3], [4]], [[3], [4]], classes=[0, 0])  # variance 0.5, in the pool 2
    CorrelationTerm(pool_of())(step.data).backward()
    assert step.first.grad.flatten()[0] > 0 > step.first.grad.flatten()[1]


class Halve(nn.Module):
    def forward(self, rows):
        return rows / 2


def test_embeddings_pass_through_both_heads_and_the_pool_does_not():
    step = Step([[12], [20]], [[12], [20]], classes=[0, 0])  # variance 32, 8 after one head, 2 after both
    plain, one, two = (
        CorrelationTerm(pool_of(), *heads)(step.data).item()
        for heads in [(None, None), (Halve(), None), (Halve(), Halve())]
    )
    assert (plain, one, two) == pytest.approx((30**2 / 4, 6**2 / 4, 0))


def test_heads_with_batch_norm_see_embeddings_of_both_views():
    torch.manual_seed(0)
    head = ProjectionHead(1, 1)
    step = Step([[3], [5]], [[4], [9]], classes=[0, 0])
    CorrelationTerm(pool_of(), head)(step.data).backward()
    assert head[0].weight.grad is not None and head[1].num_batches_tracked == 1


def test_samples_per_class_limits_the_voxels_of_a_class():
    rows = []

    class Count(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x

    step = Step([[3.0]] * 5, [[3.0]] * 5, classes=[0, 0, 0, 1, 1])
    CorrelationTerm(pool_of(), Count(), samples_per_class=2)(step.data)
    CorrelationTerm(pool_of(), Count(), samples_per_class=None)(step.data)
    assert rows == [8, 10]


@pytest.mark.parametrize(
    ("classes", "pool", "passes"),
    [
        ([2, 2, 2], POOL, 1),  # a class without prototypes
        ([0, 1, 2], POOL, 1),  # no class with two voxels
        ([0, 0, 0], {}, 0),
        ([0, 0, 0], {0: [[1.0]]}, 0),  # one prototype has no covariance
    ],
)
@pytest.mark.parametrize("form", ["aligned", "reference"])
def test_where_a_pair_is_missing_it_is_zero_with_zero_gradient(classes, pool, passes, form):
    step = Step([[3], [9], [4]], [[3], [9], [4]], classes=classes)
    value = CorrelationTerm(pool_of(pool), form=form)(step.data)
    value.backward()
    assert value.item() == 0 and step.first.grad.eq(0).all()
    assert len(step.seen) == passes


def test_a_class_without_a_pair_does_not_change_the_others():
    full = Step([[3], [9], [4], [4]], [[3], [9], [4], [4]], classes=[0, 0, 2, 2])
    alone = Step([[3], [9]], [[3], [9]], classes=[0, 0])
    for form in ("aligned", "reference"):
        values = [CorrelationTerm(pool_of(), form=form)(step.data).item() for step in (full, alone)]
        assert values[0] == pytest.approx(values[1]) and values[0] > 0


def test_pool_and_heads_are_in_the_state_of_the_term():
    """A restored term has the same value."""
    torch.manual_seed(0)
    step = Step([[3], [5], [0], [2]], [[4], [4], [0], [6]], classes=[0, 0, 1, 1])
    term = CorrelationTerm(pool_of(), ProjectionHead(1, 1), ProjectionHead(1, 1)).eval()
    fresh = CorrelationTerm(pool_of({}), ProjectionHead(1, 1), ProjectionHead(1, 1)).eval()
    assert fresh(step.data).item() == 0
    fresh.load_state_dict(term.state_dict())
    assert fresh(step.data).item() == term(step.data).item() > 0


def test_no_unlabelled_case_makes_no_pass():
    features = torch.randn(1, 1, 1, 1, 4, requires_grad=True)
    data = make_batch(logits_of([0] * 4), features, torch.zeros(1, 1, 1, 4, dtype=torch.int64))
    value = CorrelationTerm(pool_of())(data)
    value.backward()
    assert value.item() == 0 and features.grad.eq(0).all()


def test_missing_weak_view_is_refused_with_its_key():
    step = Step([[3], [9]], [[3], [9]], classes=[0, 0])
    data = make_batch(step.data.logits, step.data.features, step.data.labels, forward_pass=step.data.forward_pass)
    with pytest.raises(UserError, match="train::spatial_transforms"):
        CorrelationTerm(pool_of())(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "paper"}, "form.*'paper'"), ({"samples_per_class": 1}, "samples_per_class.* 1")],
)
def test_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CorrelationTerm(pool_of(), **options)
