# SPDX-License-Identifier: Apache-2.0
"""Handlers around every step: seeds, progress, and a stop at the right step; and how they are attached."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from scripts.losses.base import WeightedLoss
from scripts.seeding import derive_seed, seed_generators


def last_step(engine: Engine, max_steps: int) -> int:
    """The step at which a run is complete: `max_steps`, or earlier where whoever started it set fewer epochs.

    MONAI Label and federated clients set `max_epochs` of the trainer and know nothing of steps.
    """
    epochs, length = engine.state.max_epochs, engine.state.epoch_length
    return max_steps if epochs is None or length is None else min(max_steps, epochs * length)


class HandlerGroup:
    """Attach other handlers in their order, or none of them.

    MONAI's property check wants `train::handlers` to be a literal list of components, so what a method adds to it, or
    what depends on the data, stands behind one entry.

    Args:
        handlers: objects with `attach(engine)`.
        enabled: `False` attaches nothing.
    """

    def __init__(self, handlers: Sequence[Any], enabled: bool = True) -> None:
        self.handlers = list(handlers) if enabled else []

    def attach(self, engine: Engine) -> None:
        """Attach each handler."""
        for handler in self.handlers:
            handler.attach(engine)


class StepSeeder:
    """Seed all generators from (seed, iteration, rank) before each step: dropout and sampling repeat on a resume.

    Args:
        seed: the run's seed, at least 0.
        rank: leave it 0 on every rank where all compute loss and memory alike, as in configs/train.yaml: what they draw
            must be the same. Sharded passes of the network draw their own (`collectives.fork_rng_per_rank`).
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
    """Tell `WeightedLoss` before each step which one it is, so that ramp-ups follow the run.

    Args:
        terms: the loss function whose `step` is set.
    """

    def __init__(self, terms: WeightedLoss) -> None:
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


class RunProgressBar:
    """Steps done, time left, and the parts of the loss.

    ignite's `ProgressBar` shows one epoch at a time; people ask when the run will be over.

    Args:
        terms: the loss function, for its parts.
        max_steps: length of the run.
    """

    def __init__(self, terms: WeightedLoss, max_steps: int) -> None:
        self.terms, self.max_steps = terms, max_steps
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Open with the first step, move after each, close at the end or at an error."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.move)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def move(self, engine: Engine) -> None:
        """Show the step that was just done."""
        step = engine.state.iteration
        if self.bar is None:
            # In a log file a line every half minute says enough.
            interval = 0.5 if sys.stderr.isatty() else 30.0
            self.bar = tqdm(total=self.max_steps, initial=step - 1, unit="step", mininterval=interval, desc="training")
        parts = {
            name.removeprefix("Loss/"): value
            for name, value in self.terms.scalars(engine.state.output[0][Keys.LOSS]).items()
        }
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in parts.items()}, refresh=False)
        self.bar.update(step - self.bar.n)

    def close(self, engine: Engine) -> None:
        """Finish the line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Finish the line and let the error go on."""
        self.close(engine)
        raise error
