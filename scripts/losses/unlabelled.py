# SPDX-License-Identifier: Apache-2.0
"""Losses on unlabelled cases: pseudo-labels, consistency and entropy minimisation."""

from __future__ import annotations

import math

import torch
from monai.networks import one_hot
from torch.nn.functional import cross_entropy

from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.losses.supervised import masked_dice_loss, squared_dice_loss
from scripts.prototypes.voxels import NO_CLASS, pseudo_labels


class PseudoLabelTerm(LossTerm):
    """Cross-entropy plus Dice of the unlabelled cases against the teacher's most probable classes.

    The teacher sees the image before intensity augmentation and the network sees it afterwards, so the network learns
    to give the same prediction under different contrast, noise and blur (FixMatch, Sohn et al., NeurIPS 2020). Voxels
    below the confidence are left out of both parts; the loss is 0 if no voxel remains.

    Args:
        weight: number or schedule.
        confidence: minimum probability in [0, 1] of a pseudo-label.
        power: each voxel's cross-entropy is multiplied by its pseudo-label's probability to this power, at least 0; 0
            gives equal weights (SemiSeg-Contrastive, Alonso et al., ICCV 2021: 6).
        dice_weight: weight of the Dice part, at least 0.

    Raises:
        ValueError: for a negative `power` or `dice_weight`.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        confidence: float = 0.0,
        power: float = 0.0,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        if power < 0 or dice_weight < 0:
            raise ValueError(f"PseudoLabelTerm: power ({power}) and dice_weight ({dice_weight}) must not be negative.")
        self.confidence, self.power, self.dice_weight = confidence, power, dice_weight

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        if batch.num_unlabelled == 0:
            return batch.logits[:0].sum()
        logits = batch.unlabelled_logits
        labels, probability = pseudo_labels(batch.target_logits, self.confidence)
        mask = labels != NO_CLASS
        ce = cross_entropy(logits, labels, ignore_index=NO_CLASS, reduction="none")  # 0 where there is no class
        if self.power > 0:
            ce = ce * (probability**self.power).masked_fill(~mask, 0.0)
        ce = ce.sum() / mask.sum().clamp(min=1)
        if self.dice_weight == 0:
            return ce
        target = one_hot(labels.clamp(min=0)[:, None], logits.shape[1], dtype=logits.dtype)
        return ce + self.dice_weight * masked_dice_loss(logits.softmax(dim=1), target, mask[:, None])


class SoftPseudoLabelTerm(LossTerm):
    """Cross-entropy plus Dice of the unlabelled cases against the teacher's probabilities.

    Soft targets keep classes that are not yet the most probable ones. For example, a thin structure with a probability
    just below one half still contributes with that weight, whereas hard labels would make it background.

    The loss is the cross-entropy against probabilities (Hinton et al., 2015, at temperature 1) plus the squared Dice
    loss (`scripts.losses.supervised.squared_dice_loss`, smoothing 1e-5), averaged over the foreground classes.

    Args:
        weight: number or schedule.
    """

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        if batch.num_unlabelled == 0:
            return batch.logits[:0].sum()
        target = batch.target_logits.softmax(dim=1)
        probabilities = batch.unlabelled_logits.softmax(dim=1)
        dice = squared_dice_loss(probabilities[:, 1:], target[:, 1:], smooth=1e-5)
        return cross_entropy(batch.unlabelled_logits, target) + dice


class ConsistencyTerm(LossTerm):
    """Mean squared difference between the network's and the teacher's probabilities on the unlabelled cases.

    `mean_{u,k,v} (softmax(s)_k - softmax(t)_k)^2`, in [0, 2 / K]: the consistency cost of mean teacher (Tarvainen &
    Valpola, NeurIPS 2017), as UA-MT (Yu et al., MICCAI 2019) uses it on volumes. The teacher sees the image before
    intensity augmentation and receives no gradient.

    Args:
        weight: number or schedule.
    """

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        if batch.num_unlabelled == 0:
            return batch.logits[:0].sum()
        difference = batch.unlabelled_logits.softmax(dim=1) - batch.target_logits.softmax(dim=1)
        return difference.square().mean()


class EntropyTerm(LossTerm):
    """Entropy minimisation on the unlabelled cases (Grandvalet & Bengio, NeurIPS 2004).

    `mean_{u,v} ( -sum_k p_k log p_k ) / log K`, in [0, 1]: 0 if every voxel is certain, 1 if all classes are equally
    likely. The division by log K is our addition; with it the same weight suits any number of classes.

    Args:
        weight: number or schedule. If it is positive before a class is learned, the network becomes certain that the
            class is absent.
    """

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        logits = batch.unlabelled_logits
        num_classes = logits.shape[1]
        if len(logits) == 0 or num_classes < 2:
            return logits[:0].sum()
        log_probabilities = logits.log_softmax(dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
        return entropy.mean() / math.log(num_classes)
