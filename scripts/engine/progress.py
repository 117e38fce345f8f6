# SPDX-License-Identifier: Apache-2.0
"""A progress bar over the whole run."""

from __future__ import annotations

import sys

from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from scripts.terms.weighted import WeightedTerms


class RunProgressBar:
    """Steps done, time left, and the parts of the loss.

    ignite's `ProgressBar` shows one epoch at a time; people ask when the run will be over.

    Args:
        terms: the loss function, for its parts.
        max_steps: length of the run.
    """

    def __init__(self, terms: WeightedTerms, max_steps: int) -> None:
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
