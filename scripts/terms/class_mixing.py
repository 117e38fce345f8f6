# SPDX-License-Identifier: Apache-2.0
"""Structures of labelled cases pasted into unlabelled ones."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss

from scripts.functional.mixing import half_of_the_classes, paste
from scripts.terms.base import RampUp, StepData, Term


class ClassMixingTerm(Term):
    """Class mixing: ClassMix (Olsson et al., WACV 2021), with a labelled case as the source.

    The voxels of half of a labelled case's foreground classes are pasted into an unlabelled case, their labels into its
    pseudo-label; the network has to segment the mixture, in a further pass. Dice plus cross-entropy as in
    `SupervisedTerm`. Every mixture holds something whose label is known, also where the teacher sees no structure yet.

    ClassMix pastes between two unlabelled images by pseudo-labels, and weighs a mixture by the share of confident
    pixels; this pastes what is known, and does not weigh.

    Args:
        weight: number or schedule.
    """

    def __init__(self, weight: float | RampUp = 1.0) -> None:
        super().__init__(weight)
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        if step.num_labelled == 0 or step.num_unlabelled == 0:
            return step.logits[:0].sum()
        source = torch.arange(step.num_unlabelled, device=step.logits.device) % step.num_labelled
        where = torch.stack([half_of_the_classes(labels) for labels in step.labels[source]])
        images = paste(step.labelled_images[source], step.unlabelled_images, where[:, None])
        targets = paste(step.labels[source], step.target_logits.argmax(dim=1), where)
        return self.loss(step.forward_pass(images)[0], targets[:, None])
