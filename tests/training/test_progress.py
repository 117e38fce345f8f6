# SPDX-License-Identifier: Apache-2.0
"""The progress bar of the whole run."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.errors import UserError
from scripts.losses.base import LossTerm, WeightedLoss
from scripts.training.step_handlers import RunProgressBar, StopAtStep
from tests.losses.batches import make_batch


class Two(LossTerm):
    def forward(self, batch):
        return batch.logits.sum() * 0 + 2.0


def training(step=lambda iteration: None, max_steps=5, start=0):
    """An engine of two epochs of three steps with a loss of 0.5 * 2, and a record of the bar after each step."""
    terms = WeightedLoss({"dice": Two(weight=0.5)}, max_steps)
    progress, seen = RunProgressBar(terms, max_steps), []

    def update(engine, batch):
        step(engine.state.iteration)
        batch = make_batch(torch.ones(1, 2, 1, 1, 1), torch.ones(1, 2, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        return [{"loss": terms(batch)}]  # the form that BatchAsItem gives it

    engine = Engine(update)
    engine.logger.disabled = True

    @engine.on(Events.STARTED)
    def restore():
        engine.state.iteration, engine.state.epoch = start, start // 3

    progress.attach(engine)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: seen.append((progress.bar.initial, progress.bar.n, progress.bar.total, progress.bar.postfix)),
    )
    StopAtStep(max_steps).attach(engine)
    return engine, progress, seen


def test_the_bar_counts_the_steps_of_the_run_and_not_of_an_epoch(capsys):
    engine, _, seen = training()
    engine.run([0] * 3, max_epochs=2)
    assert [(n, total) for _, n, total, _ in seen] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert "5/5" in capsys.readouterr().err


def test_the_bar_of_a_resumed_run_starts_at_its_step():
    engine, _, seen = training(start=3)
    engine.run([0] * 3, max_epochs=2)
    # Steps of the earlier part count as done, but not for the speed.
    assert [(initial, n) for initial, n, _, _ in seen] == [(3, 4), (3, 5)]


def test_it_shows_the_total_and_the_unweighted_terms():
    engine, _, seen = training(max_steps=1)
    engine.run([0] * 3)
    assert seen[0][3] == "total=1.00, dice=2.00"


def test_a_finished_run_that_is_resumed_shows_no_bar(capsys):
    engine, _, seen = training(start=5)
    engine.run([0] * 3, max_epochs=2)
    assert seen == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [UserError("look at these images."), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 3])
def test_an_error_is_raised_after_the_line_is_finished(error, at, capsys):
    def fail(iteration):
        if iteration == at:
            raise error

    engine, progress, _ = training(fail)
    with pytest.raises(type(error)) as caught:
        engine.run([0] * 3, max_epochs=2)
    assert caught.value is error
    assert progress.bar is None
    text = capsys.readouterr().err
    assert text == "" if at == 1 else text.endswith("\n")
