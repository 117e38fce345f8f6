# SPDX-License-Identifier: Apache-2.0
"""The learning rate after a resume, and a second optimiser in MONAI's stock trainer: what it updates, and when."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from scripts.losses.schedules import cosine_rate, step_rate
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.guard import GradientGuard
from scripts.training.optimizers import ExtraOptimizer, RateOnCurve, remaining_parameters
from scripts.training.step_handlers import StopAtStep


@pytest.mark.parametrize(
    ("curve", "at_the_end", "further"),
    [
        (cosine_rate, 0.01, 0.5),
        (partial(step_rate, stages=2), 0.01, 0.1),
    ],
)
def test_the_rate_of_a_finished_run_follows_the_curve_of_its_extension(curve, at_the_end, further):
    def scheduler(max_steps):
        groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.2, 3.0)]
        return RateOnCurve(torch.optim.SGD(groups), partial(curve, max_steps=max_steps))

    finished, longer = scheduler(4), scheduler(8)
    for _ in range(4):
        finished.optimizer.step()
        finished.step()
    assert [group["lr"] for group in finished.optimizer.param_groups] == pytest.approx(
        [0.2 * at_the_end, 3.0 * at_the_end]
    )
    longer.optimizer.load_state_dict(finished.optimizer.state_dict())
    longer.load_state_dict(finished.state_dict())
    rates = [group["lr"] for group in longer.optimizer.param_groups]
    assert rates == longer.get_last_lr() == pytest.approx([0.2 * further, 3.0 * further])


class Product(nn.Module):
    """Loss `a * x + b * x` with two numbers of its own; b takes part in odd steps only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.step = 0

    def forward(self, prediction, label):
        self.step += 1
        value = self.a * prediction.mean() + (self.b * label.mean() if self.step % 2 else 0.0)
        return value * torch.inf if self.step == 4 else value


class Run:
    """Six steps of size 1 for the network, Adam for `b`; the fourth step's loss is infinite."""

    def __init__(self, folder, max_steps=6, resume=False):
        torch.manual_seed(0)
        self.network, self.loss = nn.Linear(1, 1), Product()
        self.extra = torch.optim.Adam([self.loss.b], lr=0.1)
        modules = [self.network, self.loss]
        self.main = torch.optim.SGD(remaining_parameters(modules, self.extra), lr=0.01)
        self.values = []
        objects = {"network": self.network, "loss": self.loss, "main": self.main, "extra": self.extra}
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            epoch_length=6,
            train_data_loader=[{"image": torch.ones(2, 1), "label": torch.ones(2, 1)}] * 6,
            network=self.network,
            optimizer=self.main,
            loss_function=self.loss,
            decollate=False,
            optim_set_to_none=True,
            train_handlers=[
                ExtraOptimizer(self.extra),
                GradientGuard(),
                TrainingCheckpoint(objects, folder, 1, max_steps, resume),
                StopAtStep(max_steps),
            ],
        )
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.trainer.add_event_handler(Events.STARTED, self.skip_what_is_done)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.values.append(self.loss.b.item()))

    def skip_what_is_done(self, engine):
        self.loss.step = engine.state.iteration

    def go(self):
        self.trainer.run()
        return self


def test_it_updates_its_parameters_only_in_steps_that_use_them(tmp_path):
    """A constant gradient: Adam's steps are of size lr. Step 2 does not use b, step 4 is undone, 6 does not use b."""
    run = Run(tmp_path).go()
    assert run.values == pytest.approx([0.9, 0.9, 0.8, 0.8, 0.7, 0.7], abs=1e-5)
    assert run.extra.state[run.loss.b]["step"] == 3


def test_the_main_optimiser_does_not_update_its_parameters(tmp_path):
    run = Run(tmp_path)
    held = [p for group in run.main.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in (*run.network.parameters(), run.loss.a)}


def test_all_parameters_are_listed_once_without_a_second_optimiser():
    shared = nn.Linear(2, 3)
    assert [p.shape for p in remaining_parameters([shared, nn.Sequential(shared)], None)] == [(3, 2), (3,)]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = Run(tmp_path / "whole").go()
    Run(tmp_path / "parts", max_steps=2).go()
    rest = Run(tmp_path / "parts", resume=True).go()
    assert rest.values == whole.values[2:]
    assert torch.equal(rest.extra.state[rest.loss.b]["exp_avg"], whole.extra.state[whole.loss.b]["exp_avg"])


def test_without_a_second_optimiser_nothing_is_saved_for_it(tmp_path):
    state = TrainingCheckpoint({"extra": None, "network": nn.Linear(1, 1)}, tmp_path, 1, 1)
    assert list(state.objects) == ["network"]
