# SPDX-License-Identifier: Apache-2.0
"""What has to happen around every step: seeds, schedules, and a stop at the right one."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from scripts.functional.seeding import derive_seed, seed_generators
from scripts.terms.weighted import WeightedTerms


class StepSeeder:
    """Seed all generators from (seed, iteration, rank) before each step: dropout and sampling repeat on a resume.

    Args:
        seed: the run's seed, at least 0.
        rank: leave it 0 on every rank where all compute loss and memory alike, as in configs/train.yaml: what they draw
            must be the same. Divided passes of the network draw their own (`scripts.functional.ranks.own_randomness`).
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed, self.rank = seed, rank

    def attach(self, engine: Engine) -> None:
        """Seed at the start of each iteration of `engine`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for the engine's current iteration."""
        seed_generators(derive_seed(self.seed, "step", engine.state.iteration, self.rank))


class TermProgress:
    """Tell `WeightedTerms` before each step which one it is, so that ramp-ups follow the run.

    Args:
        terms: the loss function whose `step` is set.
    """

    def __init__(self, terms: WeightedTerms) -> None:
        self.terms = terms

    def attach(self, engine: Engine) -> None:
        """Act at the start of each iteration of `engine`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the step, counted from 1."""
        self.terms.step = engine.state.iteration


class BatchAsItem:
    """Leave a step's output as a list of one item, the whole batch, where MONAI's handlers look for decollated items.

    A batch of two streams cannot be decollated: it has more images than labels. But MONAI's own way to the loss,
    `from_engine(["loss"], first=True)`, which its MLflow tracking and other bundles' handlers use, gives a number only
    where the output is a list.
    """

    def attach(self, engine: Engine) -> None:
        """Act when the step is complete, where MONAI decollates; handlers of earlier events still see the dict."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Wrap the output."""
        engine.state.output = [engine.state.output]


class StopAtStep:
    """End the run after `max_steps` iterations, also in the middle of an epoch; attach it last.

    Args:
        max_steps: number of iterations, at least 1.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def attach(self, engine: Engine) -> None:
        """Check at the start of the run (it may be a finished one, resumed) and after each iteration."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Terminate if the step is reached."""
        if engine.state.iteration >= self.max_steps:
            engine.terminate()
