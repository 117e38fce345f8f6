# SPDX-License-Identifier: Apache-2.0
"""Losses of the labelled cases."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss

from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.dice import linear_dice_loss
from scripts.losses.schedules import Schedule


class SupervisedTerm(LossTerm):
    """Dice plus cross-entropy on the labelled cases (MONAI's `DiceCELoss`).

    Dice is computed over the whole batch and without background, so that a class absent from one small patch is not
    pushed towards an empty prediction.

    Args:
        weight: number or schedule.
        dice_weight: weight of the Dice part, at least 0.
    """

    def __init__(self, weight: float | Schedule = 1.0, dice_weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            lambda_dice=dice_weight,
        )

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        logits, labels = batch.labelled_voxels
        if labels.numel() == 0:
            return batch.logits[:0].sum()
        return self.loss(logits, labels[:, None])


class LinearDiceTerm(LossTerm):
    """Linear Dice on the labelled cases without cross-entropy, as SS-Net (Wu et al., MICCAI 2022) trains.

    `scripts.losses.dice.linear_dice_loss` of a class's probability, over the whole batch.

    Args:
        weight: number or schedule.
        classes: `foreground` for the mean over all classes except background, or `first` for class 1 alone, as in the
            published code. With two classes both are the same.

    Raises:
        ValueError: for an unknown `classes`.
    """

    def __init__(self, weight: float | Schedule = 1.0, classes: str = "foreground") -> None:
        super().__init__(weight)
        if classes not in ("foreground", "first"):
            raise ValueError(f"LinearDiceTerm: classes must be 'foreground' or 'first', got {classes!r}.")
        self.classes = classes

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        logits, labels = batch.labelled_voxels
        if labels.numel() == 0:
            return batch.logits[:0].sum()
        probabilities = logits.softmax(dim=1)
        last = probabilities.shape[1] if self.classes == "foreground" else 2
        losses = [linear_dice_loss(probabilities[:, c], (labels == c).float()) for c in range(1, last)]
        return torch.stack(losses).mean()
