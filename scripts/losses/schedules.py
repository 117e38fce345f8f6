# SPDX-License-Identifier: Apache-2.0
"""How weights and decays change over a run."""

from __future__ import annotations

import math


def sigmoid_rampup(step: float, length: float) -> float:
    """Gaussian ramp from exp(-5) to 1: `exp(-5 (1 - s / L)^2)` with s clipped to [0, L] (Laine & Aila, ICLR 2017).

    Args:
        step: s, in any unit.
        length: L in the same unit; 0 or less means that the ramp is over.
    """
    if length <= 0:
        return 1.0
    progress = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - progress) ** 2)


def warmed_decay(decay: float, updates: int) -> float:
    """Decay of an exponential moving average that starts fast: `min(decay, (1 + n) / (10 + n))`, n updates so far.

    Without the second part the average would carry the untrained weights for about 1 / (1 - decay) steps.
    """
    return min(decay, (1.0 + updates) / (10.0 + updates))


def poly_rate(step: int, max_steps: int, power: float = 0.9, floor: float = 0.0, warmup: int = 0) -> float:
    """Factor on the learning rate: linear warm-up, then `(1 - step / max_steps) ** power`, not below `floor`.

    Args:
        step: steps done, from 0; past `max_steps` the factor stays at `floor`.
        max_steps: length of the run, at least 1.
        power: 0.9 in DeepLab (Chen et al., 2018) and nnU-Net (Isensee et al., 2021).
        floor: lowest factor, in [0, 1].
        warmup: steps over which the factor climbs from 1 / warmup to its value.
    """
    factor = max((1.0 - min(step / max_steps, 1.0)) ** power, floor)
    return factor * min(1.0, (step + 1) / warmup) if warmup > 0 else factor


def step_rate(step: int, max_steps: int, stages: int = 6, factor: float = 0.1) -> float:
    """Factor on the learning rate that falls by `factor` after each of `stages` equal parts of a run.

    SS-Net (Wu et al., MICCAI 2022) and UA-MT divide by 10 every 2,500 of 15,000 iterations: six stages.

    Args:
        step: steps done, from 0.
        max_steps: length of the run, at least 1.
        stages: at least 1.
        factor: in (0, 1].
    """
    return factor ** (step * stages // max_steps)
