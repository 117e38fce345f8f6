# SPDX-License-Identifier: Apache-2.0
"""When a run is complete."""

from __future__ import annotations

from ignite.engine import Engine


def last_step(engine: Engine, max_steps: int) -> int:
    """The step at which a run is complete: `max_steps`, or earlier where whoever started it set fewer epochs.

    MONAI Label and federated clients set `max_epochs` of the trainer and know nothing of steps.
    """
    epochs, length = engine.state.max_epochs, engine.state.epoch_length
    return max_steps if epochs is None or length is None else min(max_steps, epochs * length)
