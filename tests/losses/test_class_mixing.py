# SPDX-License-Identifier: Apache-2.0
"""Mixtures of tiny cases whose images are their classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from scripts.losses.mixing import ClassMixingTerm
from tests.losses.batches import make_batch

LABELS = torch.tensor([[1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 3]]).reshape(2, 1, 1, 6)
PSEUDO = torch.tensor([[0, 3, 3, 0, 3, 0]]).reshape(1, 1, 1, 6)


def sure(labels):
    return 50.0 * one_hot(labels.long(), 4).movedim(-1, 1).float()


class Network:
    """A forward pass that remembers its images; right about all of them, or undecided."""

    def __init__(self, right=True):
        self.right, self.images = right, None

    def __call__(self, images, keep_statistics=True):
        assert keep_statistics, "mixtures must not enter the running statistics"
        self.images = images
        return sure(images[:, 0]) if self.right else torch.zeros(len(images), 4, 1, 1, 6), None


def step_of(network, labels=LABELS, pseudo=PSEUDO):
    cases = torch.cat([labels, pseudo])
    return make_batch(
        logits=torch.zeros(len(cases), 4, 1, 1, 6, requires_grad=True),
        features=torch.zeros(len(cases), 1, 1, 1, 6),
        labels=labels,
        teacher_logits=sure(pseudo),
        images=cases[:, None].float(),
        forward_pass=network,
    )


def test_one_of_two_classes_is_pasted_and_its_label_with_it():
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        network = Network()
        assert ClassMixingTerm()(step_of(network)).item() == pytest.approx(0.0, abs=1e-4)
        seen.add(tuple(network.images.flatten().int().tolist()))
    assert seen == {(1, 1, 3, 0, 3, 0), (0, 3, 2, 2, 3, 0)}


def test_labelled_cases_are_taken_in_turn():
    network = Network()
    torch.manual_seed(0)
    ClassMixingTerm()(step_of(network, pseudo=PSEUDO.repeat(3, 1, 1, 1)))
    assert len(network.images) == 3
    assert network.images[1].flatten().tolist() == [0, 3, 3, 0, 3, 3]  # the second labelled case has one class


def test_value_is_dice_plus_cross_entropy_of_the_mixture():
    background = torch.zeros_like(
        LABELS[:1]
    )  # nothing to paste: the target is the pseudo-label, three of six in class 3
    value = ClassMixingTerm()(step_of(Network(right=False), labels=background))
    dice = [1.0, 1.0, 1 - 2 * 0.25 * 3 / (6 * 0.25 + 3)]
    assert value.item() == pytest.approx(math.log(4) + sum(dice) / 3, abs=1e-4)


@pytest.mark.parametrize("labelled", [0, 1])
def test_with_one_kind_of_case_alone_it_is_zero_with_zero_gradient(labelled):
    step = step_of(None, labels=LABELS[:labelled], pseudo=PSEUDO[: 1 - labelled])
    value = ClassMixingTerm()(step)
    value.backward()
    assert value.item() == 0 and step.logits.grad.eq(0).all()
