# SPDX-License-Identifier: Apache-2.0
"""Dice losses, schedules and the total against the recorded numbers of SS-Net."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from scripts.losses.base import LossTerm, WeightedLoss
from scripts.losses.schedules import RampUp, sigmoid_rampup, step_rate
from scripts.losses.supervised import linear_dice_loss, squared_dice_loss
from tests.golden.golden_files import Golden, found
from tests.losses.batches import make_batch

ITERATIONS = 15000  # of the reference's runs


@pytest.mark.parametrize("path", found("dice_losses*.npz"))
def test_recorded_linear_dice_and_its_gradient_are_reproduced(path):
    golden = Golden(path)
    cases = [key.removesuffix(".score") for key in golden if key.startswith("dice_") and key.endswith(".score")]
    assert cases
    for case in cases:
        score = golden[f"{case}.score"].clone().requires_grad_()
        value = linear_dice_loss(score, golden[f"{case}.target"])
        value.backward()
        golden.check(value, f"out.{case}", atol=1e-6, quantity="linear Dice")
        rtol = 1e-5 if case == "dice_both_empty" else 0.0
        golden.check(score.grad, f"grad.{case}.score", atol=1e-6, rtol=rtol, quantity=f"gradient of {case}")


@pytest.mark.parametrize("path", found("dice_losses*.npz"))
def test_recorded_multi_class_dice_is_reproduced(path):
    golden = Golden(path)
    prediction = golden["multiclass.logits"].softmax(1)
    target = one_hot(golden["multiclass.target"][:, 0].long(), prediction.shape[1]).movedim(-1, 1)
    golden.check(squared_dice_loss(prediction, target), "out.multiclass_dice", atol=1e-6, quantity="squared Dice")
    other = golden["multiclass.other_logits"].softmax(1)
    golden.check(squared_dice_loss(prediction, other), "out.multiclass_soft_dice", atol=1e-6, quantity="squared Dice")


@pytest.mark.parametrize("path", found("schedule_and_total_loss*.npz"))
def test_recorded_ramps_weights_and_rates_are_reproduced(path):
    golden = Golden(path)
    ours = [
        [sigmoid_rampup(step, length) for step in golden["rampup.step"].tolist()]
        for length in golden["rampup.length"].tolist()
    ]
    golden.check(torch.tensor(ours), "out.rampup", atol=1e-6, quantity="ramp-up")
    ramp = ramp_of(golden)
    weights = [ramp.at(iteration, ITERATIONS) for iteration in golden["weight.iteration"].tolist()]
    golden.check(torch.tensor(weights), "out.weight", atol=1e-6, quantity="weight")
    rates = [golden["lr.base"] * step_rate(n - 1, ITERATIONS) for n in golden["lr.iteration"].tolist()]
    golden.check(torch.tensor(rates), "out.lr", atol=0, rtol=1e-5, quantity="learning rate")


def ramp_of(golden, factor=1.0):
    stairs = int(golden["weight.rampup_length"])
    end = stairs * golden["weight.iterations_per_ramp_step"] / ITERATIONS
    return RampUp(factor * golden["weight.consistency"], end=end, stairs=stairs)


class Recorded(LossTerm):
    def __init__(self, value, weight):
        super().__init__(weight)
        self.value = value

    def forward(self, batch):
        return batch.logits.sum() * 0 + self.value


@pytest.mark.parametrize("path", found("schedule_and_total_loss*.npz"))
def test_recorded_total_is_reproduced_by_weighted_terms(path):
    """Cross-entropy is not a part of the total."""
    golden = Golden(path)
    weights = {
        "dice": 1.0,
        "adversarial": ramp_of(golden),
        "contrast_labeled": ramp_of(golden, 0.1),
        "contrast_unlabeled": ramp_of(golden, 0.1),
    }
    empty = make_batch(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    totals = []
    for row, iteration in enumerate(golden["total.iteration"].tolist()):
        terms = {name: Recorded(golden[f"total.loss_{name}"][row], weight) for name, weight in weights.items()}
        loss = WeightedLoss(terms, ITERATIONS)
        loss.step = iteration
        totals.append(loss(empty))
    golden.check(torch.stack(totals), "out.total", atol=1e-6, quantity="total")
