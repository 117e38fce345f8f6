# SPDX-License-Identifier: Apache-2.0
"""The learning rate, and a second optimiser for parameters that a method trains at another rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class RateOnCurve(LambdaLR):
    """`LambdaLR` that takes the rate from its current curve when it is restored, and not from the checkpoint.

    A resumed run may have more steps than before. The rate in its checkpoint belongs to the old curve, which is 0 at
    the end of a finished run.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of completed steps and set the rates of the optimiser, which must be restored before."""
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * curve(self.last_epoch) for base, curve in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class ExtraOptimizer:
    """Step a second optimiser in every iteration, directly after the trainer's optimiser.

    MONAI's `SupervisedTrainer` has one optimiser; the method document trains the learned selectors with another one.
    Gradients are cleared to `None` before the forward pass, so a parameter that a step does not use, or whose gradient
    `GradientGuard` removed, does not change.

    Args:
        optimizer: the second optimiser. It must share no parameter with the trainer's; see `remaining_parameters`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def attach(self, engine: Engine) -> None:
        """Clear gradients when an iteration starts, and step after the trainer's optimiser."""
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self.optimizer.zero_grad(set_to_none=True))
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda _: self.optimizer.step())


def remaining_parameters(modules: Sequence[nn.Module], taken_by: Optimizer | None) -> list[nn.Parameter]:
    """All parameters of some modules, each once, except those of another optimiser.

    Args:
        modules: e.g. network and loss function.
        taken_by: the other optimiser, or `None`.
    """
    taken = {p for group in taken_by.param_groups for p in group["params"]} if taken_by is not None else set()
    return [p for p in dict.fromkeys(p for module in modules for p in module.parameters()) if p not in taken]
