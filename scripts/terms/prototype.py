# SPDX-License-Identifier: Apache-2.0
"""Features against the prototypes of their class."""

from __future__ import annotations

import logging

import torch

from scripts.functional.voxels import labels_on_grid, pseudo_labels
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.terms.base import RampUp, StepData, Term

logger = logging.getLogger("ContrastTerm")

PATIENCE = 50
"""A contrast that had no pair for so many steps in a row says so."""


class ContrastTerm(Term):
    """What both contrasts share: the loss, and one warning where it stays without a pair.

    With two classes and a memory that takes correctly predicted foreground only, a contrast can be silently zero for a
    whole run: the warning says what is missing, once.

    Args:
        loss: shared with the other contrast terms, so that all of them have the same heads and memory.
        weight: number or schedule.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | RampUp = 1.0) -> None:
        super().__init__(weight)
        self.loss = loss
        self._steps_without_pair = 0

    def contrast(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of feature maps `(B, C, d, h, w)` and labels `(B, D, H, W)` on any grid."""
        labels = labels_on_grid(labels, features.shape[2:])
        value = self.loss(features, labels)
        self._steps_without_pair = 0 if bool(value.detach() != 0) else self._steps_without_pair + 1
        if self._steps_without_pair == PATIENCE and (reason := self.loss.missing_pairs(labels)):
            logger.warning(
                f"{type(self).__name__} has added nothing for {PATIENCE} steps: {reason}. Prototypes come from voxels "
                "that are predicted correctly or confidently (MemoryBankUpdater: only_correct, include_background, "
                "confidence), features from labels or from pseudo-labels above the term's confidence."
            )
        return value


class LabelledContrastTerm(ContrastTerm):
    """`ContrastivePrototypeLoss` on the labelled cases, each voxel by its label. Arguments: see `ContrastTerm`."""

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        return self.contrast(step.labelled_features, step.labels)


class UnlabelledContrastTerm(ContrastTerm):
    """`ContrastivePrototypeLoss` on the unlabelled cases, each voxel by its pseudo-label.

    Args:
        loss: see `ContrastTerm`.
        weight: number or schedule.
        confidence: least probability in [0, 1] for a pseudo-label to count; 0 uses every voxel.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | RampUp = 1.0, confidence: float = 0.9) -> None:
        super().__init__(loss, weight)
        self.confidence = confidence

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        labels, _ = pseudo_labels(step.target_logits, self.confidence)
        return self.contrast(step.unlabelled_features, labels)
