# SPDX-License-Identifier: Apache-2.0
"""Protection against steps with a non-finite loss or gradient."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from scripts.errors import UserError
from scripts.losses.base import TrainingBatch, WeightedLoss

logger = logging.getLogger("GradientGuard")


class GradientGuard:
    """Clip gradients, and undo a step whose loss or gradient is not finite.

    To undo a step, gradients are removed before the optimiser runs, and buffers (running statistics of batch norm,
    prototypes) are restored to their values before the step. A warning names the step, the loss terms or parameters
    that are not finite, and the cases.

    The guard covers the trainer's network and loss function, which together hold all trained parameters.

    Args:
        max_norm: maximum 2-norm of the gradient over all parameters (12 in nnU-Net, Isensee et al., 2021).
        patience: number of consecutive bad steps after which the run ends with an error.

    Attributes:
        undone: whether the current step was undone; later handlers read it.
        bad_steps: number of steps undone so far.

    Raises:
        UserError: after `patience` bad steps in a row.
    """

    def __init__(self, max_norm: float = 12.0, patience: int = 5) -> None:
        self.max_norm, self.patience = max_norm, patience
        self.bad_steps = 0
        self.in_a_row = 0
        self.undone = False
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attach(self, engine: SupervisedTrainer) -> None:
        """Save buffers at the start of each iteration, and check the step after the backward pass."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.judge)

    def remember(self, engine: SupervisedTrainer) -> None:
        """Copy all buffers (statistics and prototypes). They are small compared with the weights."""
        self._saved = [(buffer, buffer.clone()) for buffer in _trained(engine).buffers()]

    def judge(self, engine: SupervisedTrainer) -> None:
        """Clip the gradient, or undo the step."""
        parameters = {p: name for name, p in _trained(engine).named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss = float(engine.state.output[Keys.LOSS].detach())
        self.undone = not (math.isfinite(loss) and bool(torch.isfinite(norm)))
        if not self.undone:
            nn.utils.clip_grads_with_norm_(list(parameters), self.max_norm, norm)
            self.in_a_row = 0
            return
        self.bad_steps += 1
        self.in_a_row += 1
        reason = _reason(loss, engine.loss_function, parameters)
        for parameter in parameters:
            parameter.grad = None
        for buffer, saved in self._saved:
            buffer.copy_(saved)
        batch = engine.state.output[Keys.PRED]
        cases = ", ".join(batch.cases if isinstance(batch, TrainingBatch) else ()) or "-"
        logger.warning(f"Step {engine.state.iteration} skipped, {self.bad_steps} so far: {reason}. Cases: {cases}.")
        if self.in_a_row >= self.patience:
            raise UserError(
                f"{self.in_a_row} steps in a row had a non-finite loss or gradient (in the last one {reason}; cases: "
                f"{cases}). Lower --learning_rate, use --precision fp32, or look at these images."
            )

    def state_dict(self) -> dict[str, int]:
        """Return the total number of bad steps and the number of consecutive ones."""
        return {"bad_steps": self.bad_steps, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore both numbers."""
        self.bad_steps, self.in_a_row = state["bad_steps"], state["in_a_row"]


def _trained(trainer: SupervisedTrainer) -> nn.Module:
    """Combine network and loss function in one module, which lists shared parameters only once."""
    assert isinstance(trainer.loss_function, nn.Module)
    return nn.ModuleDict({"network": trainer.network, "loss": trainer.loss_function})


def _reason(loss: float, loss_function: Any, parameters: dict[nn.Parameter, str]) -> str:
    """Describe what is not finite: loss terms, or else gradients of parameters."""
    if not math.isfinite(loss):
        terms = loss_function.last.items() if isinstance(loss_function, WeightedLoss) else ()
        bad = [f"{name} is {value}" for name, value in terms if not math.isfinite(value)]
        return f"the loss is {loss}" + (f" (of its terms {', '.join(bad)})" if bad else "")
    names = [name for p, name in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    if not names:  # each gradient is finite, but the sum of their squares overflows
        return "the loss is finite, but the norm of its gradient is not"
    return (
        f"the loss is finite, but not its gradient, in {len(names)} of {len(parameters)} parameters, the last of "
        f"them {names[-1]}"
    )
