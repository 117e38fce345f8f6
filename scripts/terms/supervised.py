# SPDX-License-Identifier: Apache-2.0
"""Labelled cases against their labels."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss

from scripts.terms.base import RampUp, StepData, Term


class SupervisedTerm(Term):
    """Dice plus cross-entropy on the labelled cases (MONAI's `DiceCELoss`).

    Dice is taken over the whole batch, without background: a class that is missing from one small patch then does not
    push its neighbours' gradients towards "nowhere".

    Args:
        weight: number or schedule.
        dice_weight: weight of the Dice part, at least 0.
        ce_weight: weight of the cross-entropy part, at least 0.
    """

    def __init__(self, weight: float | RampUp = 1.0, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            lambda_dice=dice_weight,
            lambda_ce=ce_weight,
        )

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        if step.num_labelled == 0:
            return step.logits[:0].sum()
        return self.loss(step.labelled_logits, step.labels[:, None])
