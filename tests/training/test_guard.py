# SPDX-License-Identifier: Apache-2.0
"""A step with a non-finite loss or gradient changes no state of the trainer."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn

from scripts.errors import UserError
from scripts.prototypes.memory import PrototypeMemory
from scripts.training.guard import GradientGuard
from scripts.training.inferer import FeatureInferer
from scripts.training.teacher import Teacher, TeacherUpdater
from scripts.training.trainer import TwoStreamTrainer


class ToyLoss(nn.Module):
    """Squared error and a memory that takes an embedding in each step; `spoil(step)` may make a loss of another."""

    def __init__(self, spoil=None):
        super().__init__()
        self.memory = PrototypeMemory(1, 2, 4, "fifo")
        self.scale = nn.Parameter(torch.ones(1))
        self.spoil = spoil or (lambda loss, step: loss)
        self.step = 0

    def forward(self, batch, label):
        self.step += 1
        self.memory.update({0: torch.full((1, 2), float(self.step))})
        return self.spoil((self.scale * batch.logits - label).square().mean(), self.step)


def images(*bad):
    """Five batches of two cases, those of the steps in `bad` with one NaN voxel."""
    generator = torch.Generator().manual_seed(2)
    batches = []
    for step in range(1, 6):
        image = torch.randn(2, 1, 2, 3, 4, generator=generator)
        if step in bad:
            image[1, 0, 0, 2, 1] = torch.nan
        batches.append({"image": image, "label": image.nan_to_num() * 2, "case": [f"a{step}", f"b{step}"]})
    return batches


class Training:
    """A trainer, Adam with weight decay, and a record of everything before and after each step."""

    def __init__(self, batches, spoil=None, **guard_arguments):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Conv3d(2, 1, 1))
        self.loss = ToyLoss(spoil)
        self.teacher = Teacher(self.network, 0.9)
        parameters = [*self.network.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
        self.guard = GradientGuard(**guard_arguments)
        self.before, self.after = {}, {}
        self.trainer = TwoStreamTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            epoch_length=len(batches),
            train_data_loader=batches,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            inferer=FeatureInferer("0", divisor=1),
        )
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.record(Events.ITERATION_STARTED, self.before)
        self.guard.attach(self.trainer)
        TeacherUpdater(self.teacher, self.network, self.guard).attach(self.trainer)
        self.record(Events.ITERATION_COMPLETED, self.after)

    def record(self, event, record):
        self.trainer.add_event_handler(event, lambda e: record.update({e.state.iteration: self.everything()}))

    def everything(self):
        parts = (self.network, self.loss, self.optimizer, self.teacher)
        return copy.deepcopy([part.state_dict() for part in parts])

    def run(self):
        self.trainer.run()
        return self


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def at(step, change):
    return lambda loss, now: change(loss) if now == step else loss


def infinite_gradient(loss):
    """A finite loss: the square root has an infinite slope at 0."""
    return loss + (loss - loss.detach()).abs().sqrt()


BAD_STEPS = {
    "NaN image": {"batches": images(3)},
    "infinite loss": {"batches": images(), "spoil": at(3, lambda loss: loss * torch.inf)},
    "NaN loss with a finite gradient": {"batches": images(), "spoil": at(3, lambda loss: loss + torch.nan)},
    "finite loss with an infinite gradient": {"batches": images(), "spoil": at(3, infinite_gradient)},
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_bad_step_changes_nothing_and_the_others_do(case):
    run = Training(**BAD_STEPS[case]).run()
    # Weights, batch norm's statistics and number of batches, memory, Adam's moments and step numbers, the teacher.
    assert same(run.after[3], run.before[3])
    for step in (1, 2, 4, 5):
        assert not same(run.after[step], run.before[step])
    assert run.guard.bad_steps == 1


@pytest.mark.parametrize("zeros", [False, True])
def test_a_run_with_a_bad_step_ends_like_one_without_it(zeros):
    bad = Training(images(3))
    bad.trainer.optim_set_to_none = not zeros
    bad.run()
    good = Training([batch for i, batch in enumerate(images()) if i != 2])
    good.run()
    for a, b in zip(bad.everything()[::2], good.everything()[::2], strict=True):
        assert same(a, b)
    assert bad.loss.scale.item() == good.loss.scale.item()


def test_embeddings_of_a_bad_step_are_removed_from_the_memory():
    run = Training(images(3)).run()
    # Step n writes an embedding with the value n, newest first; that of step 3 is missing.
    assert run.loss.memory.prototypes(0)[:, 0].tolist() == [5, 4, 2, 1]


def test_the_teacher_stays_finite():
    run = Training(images(1, 4)).run()
    assert all(value.isfinite().all() for value in run.teacher.state_dict().values())


def test_a_bad_step_is_logged_with_its_number_and_cases(caplog):
    with caplog.at_level(logging.WARNING, "GradientGuard"):
        Training(images(2, 4)).run()
    messages = [record.getMessage() for record in caplog.records if record.name == "GradientGuard"]
    assert len(messages) == 2
    assert "Step 2 " in messages[0] and "a2, b2" in messages[0]
    assert "Step 4 " in messages[1] and "a4, b4" in messages[1]


def test_the_run_ends_after_patience_bad_steps_in_a_row():
    run = Training(images(2, 3, 4, 5), patience=3)
    with pytest.raises(UserError) as caught:
        run.run()
    assert run.trainer.state.iteration == 4
    assert run.guard.bad_steps == 3
    message = str(caught.value)
    assert "a4, b4" in message
    assert "--learning_rate" in message
    assert "\n" not in message
    assert same(run.everything(), run.after[1])


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run():
    run = Training(images(1, 2, 4, 5), patience=3).run()
    assert run.trainer.state.iteration == 5
    assert run.guard.bad_steps == 4


def test_a_bad_batch_without_case_names_is_skipped_too(caplog):
    batches = [{key: batch[key] for key in ("image", "label")} for batch in images(3)]
    with caplog.at_level(logging.WARNING, "GradientGuard"):
        assert Training(batches).run().guard.bad_steps == 1
    assert len(caplog.records) == 1


# ------------------------------------------------------------------ clipping


class Slope(nn.Module):
    """Loss 3 w0 + 4 w1: the gradient is (3, 4), its norm 5."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, image):
        return self.w * torch.tensor([3.0, 4.0])


class Total(nn.Module):
    def __init__(self, network=None):
        super().__init__()
        self.network = network

    def forward(self, prediction, label):
        return prediction.sum()


def step_of(max_norm, loss_of=lambda network: Total()):
    """The gradient that the optimiser receives: minus the step of gradient descent with rate 1."""
    network = Slope()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        epoch_length=1,
        train_data_loader=[{"image": torch.ones(1), "label": torch.ones(1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=loss_of(network),
        decollate=False,
        train_handlers=[GradientGuard(max_norm=max_norm)],
    )
    trainer.run()
    return (-network.w).tolist()


def test_a_gradient_longer_than_max_norm_is_scaled_down_to_it():
    assert step_of(max_norm=1.0) == pytest.approx([0.6, 0.8], rel=1e-5)
    assert step_of(max_norm=2.5) == pytest.approx([1.5, 2.0], rel=1e-5)


def test_a_gradient_within_max_norm_is_not_changed():
    assert step_of(max_norm=5.1) == [3.0, 4.0]


def test_a_network_that_the_loss_holds_too_is_clipped_once():
    assert step_of(1.0, Total) == pytest.approx([0.6, 0.8], rel=1e-5)


def test_the_norm_is_taken_over_network_and_loss_together():
    run = Training(images()[:1], max_norm=1e-3)
    norms = []

    def measure(engine):
        parameters = [*run.network.parameters(), *run.loss.parameters()]
        norms.append(sum(float(p.grad.square().sum()) for p in parameters) ** 0.5)

    run.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, measure)
    run.run()
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_counts_of_bad_steps_survive_a_restart():
    """Otherwise a run that is killed and resumed would start counting again."""
    run = Training(images(4, 5)).run()
    restored = GradientGuard(patience=3)
    restored.load_state_dict(copy.deepcopy(run.guard.state_dict()))
    assert (restored.bad_steps, restored.in_a_row) == (2, 2)
