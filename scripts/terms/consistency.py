# SPDX-License-Identifier: Apache-2.0
"""Unlabelled cases against the teacher's probabilities."""

from __future__ import annotations

import torch

from scripts.terms.base import StepData, Term


class ConsistencyTerm(Term):
    """Mean squared difference of the network's and the teacher's class probabilities on the unlabelled cases.

    `mean_{u,k,v} (softmax(s)_k - softmax(t)_k)^2`, in [0, 2 / K]: the consistency cost of mean teacher (Tarvainen &
    Valpola, NeurIPS 2017), as UA-MT (Yu et al., MICCAI 2019) uses it on volumes. The teacher sees the image before
    intensity augmentation and gets no gradient.

    Args:
        weight: number or schedule.
    """

    def compute(self, step: StepData) -> torch.Tensor:
        """See the class."""
        if step.num_unlabelled == 0:
            return step.logits[:0].sum()
        difference = step.unlabelled_logits.softmax(dim=1) - step.target_logits.softmax(dim=1)
        return difference.square().mean()
