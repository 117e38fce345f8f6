# SPDX-License-Identifier: Apache-2.0
"""Save the weights for deployment: the final averaged weights, and the best ones on validation cases."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.weights import save_weights
from scripts.distributed.collectives import is_rank0
from scripts.training.run_record import RunRecord
from scripts.training.step_handlers import last_step

logger = logging.getLogger("ModelSaver")


class FinalModelSaver:
    """Save the state dict of `network` when the run is complete. With several ranks, the first writes the file.

    Args:
        network: the network to deploy, which is the teacher's averaged copy.
        path: the file, such as `outputs/models/model.pt`.
        max_steps: length of the run. A run that ends before this step and before the last of its `max_epochs` writes
            nothing.
        dataset: the dataset block, whose preprocessing is recorded in the file; `None` records no preprocessing.
        record: the record of the run, which is also stored in the file; `None` stores none.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        max_steps: int,
        dataset: DatasetSpec | None = None,
        record: RunRecord | None = None,
    ) -> None:
        self.network, self.path, self.max_steps = network, Path(path), max_steps
        self.dataset, self.record = dataset, record

    def attach(self, engine: Engine) -> None:
        """Save when `engine`, the trainer, ends."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the run is complete."""
        if engine.state.iteration >= last_step(engine, self.max_steps) and is_rank0():
            save_weights(self.network, self.path, self.dataset, **_for_weights(self.record))
            logger.info(f"Averaged weights of step {engine.state.iteration} written to {self.path}.")


class BestModelSaver:
    """Save the state dict of `network` after each validation whose key metric is the highest so far.

    The best value is part of a checkpoint (`state_dict`), so that a resumed run does not overwrite a better model. A
    metric that is NaN is ignored. All ranks have the metric of all cases, and the first writes the file.

    Args:
        network: the network that is validated.
        path: the file, such as `outputs/models/model_best.pt`.
        dataset: as for `FinalModelSaver`.
        record: as for `FinalModelSaver`.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        dataset: DatasetSpec | None = None,
        record: RunRecord | None = None,
    ) -> None:
        self.network, self.path, self.dataset, self.record = network, Path(path), dataset, record
        self.best_metric: float | None = None

    def attach(self, engine: Engine) -> None:
        """Compare and save when `engine`, MONAI's evaluator, has completed a validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the key metric is the best so far."""
        value = float(engine.state.metrics[engine.state.key_metric_name])
        if not math.isnan(value) and (self.best_metric is None or value > self.best_metric):
            self.best_metric = value
            if is_rank0():
                save_weights(self.network, self.path, self.dataset, **_for_weights(self.record))
            logger.info(f"Best validation so far: {engine.state.key_metric_name} {value:.4f}, written to {self.path}.")

    def state_dict(self) -> dict[str, float | None]:
        """Return the best value so far as a Python float, which `torch.load` accepts with `weights_only`."""
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Restore the best value."""
        self.best_metric = state["best_metric"]


def _for_weights(record: RunRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    return {"run": record.for_weights(), "cases": record.training_cases and record.training_cases.content}
