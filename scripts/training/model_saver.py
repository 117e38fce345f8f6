# SPDX-License-Identifier: Apache-2.0
"""Write the weights that people use: the final averaged ones, and the best on validation cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from scripts.data.preprocessing_record import save_weights
from scripts.distributed.collectives import is_rank0
from scripts.training.step_handlers import last_step

logger = logging.getLogger("ModelSaver")


class FinalModelSaver:
    """At the end of a run write `network`'s state dict, exactly its keys, to `path`; of several ranks the first writes.

    Args:
        network: what is deployed: the teacher's averaged network.
        path: e.g. `models/model.pt`.
        max_steps: a run that ends before this step, or before the last of its `max_epochs`, writes nothing.
        record: of `scripts.data.preprocessing_record.preprocessing_record`; it is saved with the weights.
    """

    def __init__(
        self, network: nn.Module, path: str | Path, max_steps: int, record: Mapping[str, Any] | None = None
    ) -> None:
        self.network, self.path, self.max_steps, self.record = network, Path(path), max_steps, record

    def attach(self, engine: Engine) -> None:
        """Act when the run is complete."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        if engine.state.iteration >= last_step(engine, self.max_steps) and is_rank0():
            save_weights(self.network.state_dict(), self.path, self.record)
            logger.info(f"Averaged weights of step {engine.state.iteration} written to {self.path}.")


class BestModelSaver:
    """After each validation that beats all before it, write `network`'s state dict to `path`.

    The best value belongs to the run's state (`state_dict`), so a resumed run cannot overwrite a better model.
    Of several ranks, which all see the metric of all cases, the first writes.

    Args:
        network: what is validated.
        path: e.g. `models/model_best.pt`.
        record: as for `FinalModelSaver`.
    """

    def __init__(self, network: nn.Module, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        self.network, self.path, self.record = network, Path(path), record
        self.best_metric: float | None = None

    def attach(self, engine: Engine) -> None:
        """Act when a validation by `engine`, MONAI's evaluator, is complete."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare and write."""
        value = float(engine.state.metrics[engine.state.key_metric_name])
        if not math.isnan(value) and (self.best_metric is None or value > self.best_metric):
            self.best_metric = value
            if is_rank0():
                save_weights(self.network.state_dict(), self.path, self.record)
            logger.info(f"Best validation so far: {engine.state.key_metric_name} {value:.4f}, written to {self.path}.")

    def state_dict(self) -> dict[str, float | None]:
        """The best value so far, a plain float so that it loads with `weights_only`."""
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Restore the best value."""
        self.best_metric = state["best_metric"]
