# SPDX-License-Identifier: Apache-2.0
"""Features against the prototypes of their class."""

from __future__ import annotations

import torch

from scripts.functional.voxels import labels_on_grid, pseudo_labels
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.terms.base import RampUp, StepData, Term


class LabelledContrastTerm(Term):
    """`ContrastivePrototypeLoss` on the labelled cases, each voxel by its label.

    Args:
        loss: shared with the other contrast terms, so that all of them have the same heads and memory.
        weight: number or schedule.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | RampUp = 1.0) -> None:
        super().__init__(weight)
        self.loss = loss

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        labels = labels_on_grid(step.labels, step.features.shape[2:])
        return self.loss(step.labelled_features, labels)


class UnlabelledContrastTerm(Term):
    """`ContrastivePrototypeLoss` on the unlabelled cases, each voxel by its pseudo-label.

    Args:
        loss: shared with the other contrast terms.
        weight: number or schedule.
        confidence: least probability in [0, 1] for a pseudo-label to count; 0 uses every voxel.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | RampUp = 1.0, confidence: float = 0.9) -> None:
        super().__init__(weight)
        self.loss = loss
        self.confidence = confidence

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        if step.num_unlabelled == 0:
            return step.features[:0].sum()
        labels, _ = pseudo_labels(step.target_logits, self.confidence)
        return self.loss(step.unlabelled_features, labels_on_grid(labels, step.features.shape[2:]))
