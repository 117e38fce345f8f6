# SPDX-License-Identifier: Apache-2.0
"""Loss weights, learning rates and decays as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class Schedule(Protocol):
    """A loss weight that changes over the run."""

    def at(self, step: int, max_steps: int) -> float:
        """Return the weight at a step (counted from 1) of a run of `max_steps`."""


def sigmoid_rampup(step: float, length: float) -> float:
    """Gaussian ramp from exp(-5) to 1: `exp(-5 (1 - s / L)^2)` with s clipped to [0, L] (Laine & Aila, ICLR 2017).

    Args:
        step: s, in any unit.
        length: L, in the same unit; if it is 0 or less, the result is 1.
    """
    if length <= 0:
        return 1.0
    progress = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - progress) ** 2)


class RampUp:
    """A weight that ramps up; start and end are fractions of the run, so that it scales with `max_steps`.

    The weight is 0 up to the step `start`, then `value * exp(-5 (1 - s)^2)` with s rising from 0 to 1 until `end`, then
    `value` (Laine & Aila, ICLR 2017). If `start` is `unlabelled_start`, the weight is positive from the first step with
    unlabelled cases.

    Args:
        value: final weight.
        start: fraction of the run before which the weight is 0, in [0, 1].
        end: fraction of the run at which the weight reaches `value`, in [start, 1].
        stairs: number of equal steps in which the weight rises; with 0 it rises in every iteration. UA-MT and SS-Net
            use 40 stairs of 150 iterations, over the first 0.4 of 15,000 iterations. They increment the iteration
            before they look up its weight. Iteration n, counted from 1, is therefore on stair n // 150, and the first
            stair has 149 iterations.

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
        if step <= round(self.start * max_steps):  # the loader rounds `unlabelled_start` in the same way
            return 0.0
        length = (self.end - self.start) * max_steps
        climbed = step - self.start * max_steps
        if self.stairs == 0 or length <= 0:
            return self.value * sigmoid_rampup(climbed, length)
        # The small number corrects products that floating point rounds down.
        return self.value * sigmoid_rampup(math.floor(climbed / length * self.stairs + 1e-6), self.stairs)


def warmed_decay(decay: float, updates: int) -> float:
    """Decay of an exponential moving average after n updates: `decay * (1 + n) / (10 + n)`.

    With the factor `(1 + n) / (10 + n)` alone, past networks would be weighted by the ninth power of their step number,
    so the average would cover roughly the last tenth of all updates, and untrained weights would fade quickly. The
    product is below both factors, so `decay` also has an effect in the first steps and in short runs.
    """
    return decay * (1.0 + updates) / (10.0 + updates)


def cosine_rate(step: int, max_steps: int, warmup: int = 0, lowest: float = 0.01, restart: float = 1.0) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to `lowest`, once or twice.

    `max(lowest, (1 + cos(pi s / L)) / 2)` after s of L steps (Loshchilov & Hutter, ICLR 2017). With self-training, the
    curve restarts when training on unlabelled cases begins.

    Args:
        step: number of completed steps.
        max_steps: length of the run, at least 1.
        warmup: number of steps over which the factor increases from 1 / warmup.
        lowest: smallest factor after the warm-up, in [0, 1].
        restart: fraction of the run, in (0, 1], at which the curve restarts; with 1 it never does.
    """
    first = min(max_steps, round(restart * max_steps))
    done, length = (step, first) if step < first or first == max_steps else (step - first, max_steps - first)
    factor = max(lowest, (1 + math.cos(math.pi * min(done / length, 1.0))) / 2)
    return factor * min(1.0, (done + 1) / warmup) if warmup > 0 else factor


def step_rate(step: int, max_steps: int, stages: int = 6, factor: float = 0.1) -> float:
    """Factor on the learning rate, multiplied by `factor` after each of `stages` equal parts of the run.

    SS-Net (Wu et al., MICCAI 2022) and UA-MT divide the rate by 10 every 2,500 of 15,000 iterations (six stages).

    Args:
        step: number of completed steps.
        max_steps: length of the run, at least 1.
        stages: number of parts, at least 1.
        factor: multiplier per part, in (0, 1].
    """
    return factor ** (step * stages // max_steps)


def warmed_rate(curve: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """Add a linear warm-up to a curve of the learning rate, in addition to any warm-up that it already has.

    Args:
        curve: factor on the learning rate as a function of the number of completed steps.
        warmup: number of steps over which the curve is multiplied by a factor that rises linearly from 1 / warmup to 1;
            0 for no warm-up.

    Example:
        >>> warmed_rate(lambda step: 0.5, warmup=4)(1)
        0.25
    """
    return lambda step: curve(step) * min(1.0, (step + 1) / warmup) if warmup > 0 else curve(step)
