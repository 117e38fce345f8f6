# SPDX-License-Identifier: Apache-2.0
"""What a loss term sees, and what every term has in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from scripts.functional.ramps import sigmoid_rampup
from scripts.functional.voxels import NO_CLASS


class ForwardPass(Protocol):
    """A further pass of the network being trained, under the same autocast and padding as the step's own."""

    def __call__(self, images: torch.Tensor, keep_statistics: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, K, D, H, W)` and features `(B, F, d, h, w)` of images `(B, C, D, H, W)`, float32.

        With `keep_statistics` running statistics of norms stay as they are.
        """


@dataclass(frozen=True)
class StepData:
    """Everything that one training step offers to the terms; the L labelled cases come first, then the U unlabelled.

    Attributes:
        logits: the network's output for all cases, `(L + U, K, D, H, W)`.
        features: embeddings from the tap, `(L + U, C, d, h, w)`; may be coarser than the image.
        labels: classes of the labelled cases, `(L, D, H, W)`, int64 in [0, K), or `NO_CLASS` for voxels to ignore.
        teacher_logits: the teacher's output for the unlabelled cases, `(U, K, D, H, W)`, or `None` without a teacher.
        images: what the network saw, `(L + U, C, D, H, W)`; only terms with passes of their own need it.
        weak_images: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, or `None`.
        forward_pass: for terms with passes of their own.
    """

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor
    teacher_logits: torch.Tensor | None = None
    images: torch.Tensor | None = None
    weak_images: torch.Tensor | None = None
    forward_pass: ForwardPass | None = None

    @property
    def num_labelled(self) -> int:
        """L."""
        return self.labels.shape[0]

    @property
    def num_unlabelled(self) -> int:
        """U."""
        return self.logits.shape[0] - self.labels.shape[0]

    @property
    def labelled_logits(self) -> torch.Tensor:
        """`(L, K, D, H, W)`."""
        return self.logits[: self.num_labelled]

    @property
    def unlabelled_logits(self) -> torch.Tensor:
        """`(U, K, D, H, W)`."""
        return self.logits[self.num_labelled :]

    @property
    def labelled_features(self) -> torch.Tensor:
        """`(L, C, d, h, w)`."""
        return self.features[: self.num_labelled]

    @property
    def unlabelled_features(self) -> torch.Tensor:
        """`(U, C, d, h, w)`."""
        return self.features[self.num_labelled :]

    @property
    def labelled_images(self) -> torch.Tensor:
        """`(L, C, D, H, W)`."""
        return self.images[: self.num_labelled]

    @property
    def unlabelled_images(self) -> torch.Tensor:
        """`(U, C, D, H, W)`."""
        return self.images[self.num_labelled :]

    @cached_property
    def ignored(self) -> torch.Tensor | None:
        """Labelled voxels that take no part, bool `(L, D, H, W)`; `None` where all of them count."""
        ignored = self.labels == NO_CLASS
        return ignored if bool(ignored.any()) else None

    @property
    def labelled_voxels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the labelled voxels that count, for losses that sum over the whole batch.

        `(L, K, D, H, W)` and `(L, D, H, W)`; where voxels are ignored the N others in one line, `(1, K, N)` and
        `(1, N)`, and N may be 0.
        """
        if self.ignored is None:
            return self.labelled_logits, self.labels
        counted = ~self.ignored
        return self.labelled_logits.movedim(1, -1)[counted].T[None], self.labels[counted][None]

    @property
    def target_logits(self) -> torch.Tensor:
        """Logits that pseudo-labels are made of: the teacher's, or without one the network's own; no gradient."""
        return (self.unlabelled_logits if self.teacher_logits is None else self.teacher_logits).detach()


class RampUp:
    """A weight that waits, climbs and stays, as fractions of the run, so that it scales with `max_steps`.

    0 before `start`, then `value * exp(-5 (1 - s)^2)` with s from 0 to 1 until `end`, then `value`
    (Laine & Aila, ICLR 2017).

    Args:
        value: final weight.
        start: fraction of the run before which the weight is 0, in [0, 1].
        end: fraction at which the weight is reached, in [start, 1].
        stairs: the published codes climb in so many equal stairs (UA-MT, SS-Net: 40, of 150 iterations each, over the
            first 0.4 of 15,000); 0 climbs in every step.

    Raises:
        ValueError: if not 0 <= start <= end <= 1, or for a negative number of stairs.
    """

    def __init__(self, value: float, start: float = 0.0, end: float = 0.4, stairs: int = 0) -> None:
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"RampUp needs 0 <= start <= end <= 1, got start {start} and end {end}.")
        if stairs < 0:
            raise ValueError(f"RampUp: stairs must not be negative, got {stairs}.")
        self.value, self.start, self.end, self.stairs = value, start, end, stairs

    def at(self, step: int, max_steps: int) -> float:
        """Weight at a step (from 1) of a run of `max_steps`."""
        if step < self.start * max_steps:
            return 0.0
        length = (self.end - self.start) * max_steps
        if self.stairs == 0 or length <= 0:
            return self.value * sigmoid_rampup(step - self.start * max_steps, length)
        # Published codes count iterations from 0. The small number keeps a stair whose product is rounded down.
        climbed = (step - 1 - self.start * max_steps) / length * self.stairs
        return self.value * sigmoid_rampup(math.floor(climbed + 1e-6), self.stairs)


class Term(nn.Module):
    """One summand of the training loss. Subclasses implement `compute`.

    Args:
        weight: a number, or a schedule with `at(step, max_steps)` such as `RampUp`.
    """

    def __init__(self, weight: float | RampUp = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, step: int, max_steps: int) -> float:
        """The weight at a step (from 1) of a run of `max_steps`."""
        return float(self.weight.at(step, max_steps) if hasattr(self.weight, "at") else self.weight)

    def compute(self, step: StepData) -> torch.Tensor:
        """The unweighted value, a scalar; 0 with a zero gradient where the step holds nothing for this term."""
        raise NotImplementedError
