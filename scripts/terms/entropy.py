# SPDX-License-Identifier: Apache-2.0
"""Unlabelled cases against indecision."""

from __future__ import annotations

import math

import torch

from scripts.terms.base import StepData, Term


class EntropyTerm(Term):
    """Mean entropy of the network's class probabilities on the unlabelled cases, divided by its largest value.

    `mean_{u,v} ( -sum_k p_k log p_k ) / log K`, in [0, 1]: 0 where every voxel is sure, 1 where all classes are as
    likely. The conditional entropy of entropy minimisation (Grandvalet & Bengio, NeurIPS 2004), which adds it to
    the supervised loss; the division, which is ours, makes one weight fit any number of classes.

    Args:
        weight: number or schedule. A term that is on before a class is learned makes the network sure of its absence.
    """

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        logits = step.unlabelled_logits
        num_classes = logits.shape[1]
        if len(logits) == 0 or num_classes < 2:
            return logits[:0].sum()
        log_probabilities = logits.log_softmax(dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
        return entropy.mean() / math.log(num_classes)
