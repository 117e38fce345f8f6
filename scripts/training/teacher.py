# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the network (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.optim.swa_utils import AveragedModel

from scripts.losses.schedules import warmed_decay
from scripts.training.guard import GradientGuard


class Teacher(AveragedModel):
    """A copy of a network whose weights are an exponential moving average of the network's weights.

    This is torch's `AveragedModel` with a decay that warms up: the first update copies the weights, and update n + 1
    averages with `decay * (1 + n) / (10 + n)`. Buffers (batch norm) are copied at each update. The attribute `module`
    is the averaged network; its state dict has the keys of `network`.

    Args:
        network: the student.
        decay: weight of the old average, in [0, 1).

    Raises:
        ValueError: for a decay outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"The teacher's decay (teacher_decay) must be in [0, 1), got {decay}.")

        def average(
            averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], updates: torch.Tensor | int
        ) -> None:
            kept = warmed_decay(decay, int(updates))  # one transfer from the device for all parameters
            for mean, new in zip(averaged, current, strict=True):
                mean.copy_(torch.lerp(new, mean, kept))

        super().__init__(network, multi_avg_fn=average, use_buffers=False)
        self.requires_grad_(False)
        self.decay = decay


class TeacherUpdater:
    """Update the teacher after each optimiser step.

    Args:
        teacher: the averaged network.
        network: the student.
        guard: if it has undone a step, the teacher is not updated after that step.
    """

    def __init__(self, teacher: Teacher, network: nn.Module, guard: GradientGuard | None = None) -> None:
        self.teacher, self.network, self.guard = teacher, network, guard

    def attach(self, engine: Engine) -> None:
        """Update after each optimiser step of the engine."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Update the average, unless the step was undone."""
        if self.guard is None or not self.guard.undone:
            self.teacher.update_parameters(self.network)
