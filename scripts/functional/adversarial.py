# SPDX-License-Identifier: Apache-2.0
"""The direction in which a small change of the images changes the prediction most."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from scripts.functional.dice import linear_dice_loss


class AdversarialDirection(NamedTuple):
    """What a power iteration found.

    Attributes:
        direction: unit direction per case, `(B, C, D, H, W)`, without gradient.
        distances: distance between clean and probed prediction at each iteration.
        gradient_norm: 2-norm per case of the last gradient, `(B,)`.
    """

    direction: torch.Tensor
    distances: list[float]
    gradient_norm: torch.Tensor


def unit_directions(directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each case divided by its 2-norm plus 1e-8, and the norms `(B,)`."""
    norm = directions.flatten(1).norm(dim=1)
    return directions / (norm.reshape(-1, *[1] * (directions.ndim - 1)) + 1e-8), norm


def adversarial_direction(
    predict: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    clean: torch.Tensor,
    start: torch.Tensor,
    probe: float,
    iterations: int,
) -> AdversarialDirection:
    """Power iteration of virtual adversarial training (Miyato et al., TPAMI 2018, section 3.3).

    Each iteration probes `images + probe * d` and replaces d by the normalised gradient of the linear Dice distance
    between the probed and the clean prediction (SS-Net, Wu et al., MICCAI 2022, takes Dice for the divergence).
    Gradients stored in parameters are neither read nor changed.

    Args:
        predict: images to probabilities `(B, K, D, H, W)`.
        images: `(B, C, D, H, W)`.
        clean: prediction for `images`, without gradient.
        start: random directions, the shape of `images`.
        probe: length of the probing step (xi), in intensity units.
        iterations: at least 1.
    """
    direction, _ = unit_directions(start)
    distances = []
    for _ in range(iterations):
        direction = direction.detach().requires_grad_()
        with torch.enable_grad():
            distance = linear_dice_loss(predict(images + probe * direction), clean)
            gradient = torch.autograd.grad(distance, direction)[0]
        distances.append(float(distance.detach()))
        direction, norm = unit_directions(gradient)
    return AdversarialDirection(direction.detach(), distances, norm)
