# SPDX-License-Identifier: Apache-2.0
"""Virtual adversarial training: the prediction should not change when the image changes slightly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.losses.supervised import linear_dice_loss


class AdversarialDirection(NamedTuple):
    """Result of a power iteration.

    Attributes:
        direction: unit direction per case, `(B, C, D, H, W)`, without gradient.
        distances: distance between the clean and the probed prediction in each iteration, scalars without gradient.
        gradient_norm: 2-norm of the last gradient for each case, `(B,)`.
    """

    direction: torch.Tensor
    distances: list[torch.Tensor]
    gradient_norm: torch.Tensor


def unit_directions(directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide each case by its 2-norm plus 1e-8; return the result and the norms `(B,)`."""
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

    Each iteration predicts `images + probe * d`, and replaces d by the normalised gradient of the linear Dice distance
    between this prediction and the clean one (SS-Net, Wu et al., MICCAI 2022, uses Dice as the divergence).
    Gradients stored in parameters are neither used nor changed.

    Args:
        predict: function from images to probabilities `(B, K, D, H, W)`.
        images: `(B, C, D, H, W)`.
        clean: prediction for `images`, without gradient.
        start: random directions, the shape of `images`.
        probe: length of the probing step (xi), in intensity units.
        iterations: number of power iterations, at least 1.
    """
    direction, _ = unit_directions(start)
    distances = []
    for _ in range(iterations):
        direction = direction.detach().requires_grad_()
        with torch.enable_grad():
            distance = linear_dice_loss(predict(images + probe * direction), clean)
            gradient = torch.autograd.grad(distance, direction)[0]
        distances.append(distance.detach())
        direction, norm = unit_directions(gradient)
    return AdversarialDirection(direction.detach(), distances, norm)


CLEAN_PASSES = ("own", "step")


def centred_noise(images: torch.Tensor) -> torch.Tensor:
    """Draw uniform noise in [-0.5, 0.5) of the shape of `images`, on the CPU so that all devices get the same."""
    return (torch.rand(images.shape) - 0.5).to(images)


class SmoothnessTerm(LossTerm):
    """Distance between the predictions for an image and for the same image with an adversarial perturbation.

    `dice(softmax f(x + epsilon d), softmax f(x))` with the linear Dice distance and d from power iteration: virtual
    adversarial training (Miyato et al., TPAMI 2018) as SS-Net uses it (Wu et al., MICCAI 2022, equation 2). The clean
    prediction and d are constants. Passes of perturbed images use batch statistics and do not record them. All cases
    are perturbed, labelled and unlabelled, as in SS-Net's code. Ignored voxels of labelled cases are left out.

    The linear Dice distance between identical soft predictions is not 0, so the term also rewards certainty.

    Args:
        weight: number or schedule.
        probe: xi, length of the probing step in intensity units, for images of unit variance.
        epsilon: length of the final step, in the same units (SS-Net's code: 10 on the left atrium, 6 for 2D).
        iterations: power iterations, at least 1.
        clean_pass: `step` uses the step's prediction, at no cost; `own` predicts the images once more, which updates
            running statistics again and uses new random dropout (SS-Net's code).
        noise: function that draws the starting direction, given the images.

    Raises:
        ValueError: for an unknown `clean_pass` or fewer than 1 iterations.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        probe: float = 10.0,
        epsilon: float = 10.0,
        iterations: int = 1,
        clean_pass: str = "step",
        noise: Callable[[torch.Tensor], torch.Tensor] = centred_noise,
    ) -> None:
        super().__init__(weight)
        if clean_pass not in CLEAN_PASSES:
            raise ValueError(
                f"SmoothnessTerm: clean_pass must be one of {', '.join(CLEAN_PASSES)}, got {clean_pass!r}."
            )
        if iterations < 1:
            raise ValueError(f"SmoothnessTerm: iterations must be at least 1, got {iterations}.")
        self.probe, self.epsilon, self.iterations = probe, epsilon, iterations
        self.clean_pass, self.noise = clean_pass, noise

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        images = batch.images

        def counted(probabilities: torch.Tensor) -> torch.Tensor:
            if batch.ignored is None:
                return probabilities
            keep = torch.ones_like(probabilities[:, :1])
            keep[: batch.num_labelled, 0] = (~batch.ignored).to(keep)
            return probabilities * keep

        def predict(moved: torch.Tensor, fixed_parameters: bool = False) -> torch.Tensor:
            return counted(batch.forward_pass(moved, fixed_parameters=fixed_parameters)[0].softmax(dim=1))

        with torch.no_grad():
            own = self.clean_pass == "own"
            logits = batch.forward_pass(images, keep_statistics=False)[0] if own else batch.logits
            clean = counted(logits.softmax(dim=1))
        probe = partial(predict, fixed_parameters=True)
        found = adversarial_direction(probe, images, clean, self.noise(images), self.probe, self.iterations)
        return linear_dice_loss(predict(images + self.epsilon * found.direction), clean)
