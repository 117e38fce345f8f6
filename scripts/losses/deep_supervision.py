# SPDX-License-Identifier: Apache-2.0
"""Deep supervision: the loss of the labelled cases on coarser layers of the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool3d, cross_entropy, one_hot, pad

from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.losses.supervised import masked_dice_loss
from scripts.prototypes.voxels import NO_CLASS, pseudo_labels, stride_of


def class_fractions(labels: torch.Tensor, num_classes: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Average labels over the cells of a coarser grid.

    Args:
        labels: `(B, D, H, W)`, int64 in [0, K) or `NO_CLASS`.
        num_classes: K.
        shape: of the coarser grid, `(d, h, w)`.

    Returns:
        Fraction of each class in each cell, `(B, K, d, h, w)`, float32, and a bool mask `(B, d, h, w)` of the cells
        without a voxel of `NO_CLASS`.
    """
    counted = one_hot(labels.clamp(min=0), num_classes).movedim(-1, 1).float()
    cells = (shape[0], shape[1], shape[2])
    ignored = (labels == NO_CLASS).float()[:, None]
    strides = [stride_of(side, count) or 0 for side, count in zip(labels.shape[1:], cells, strict=True)]
    # The last cell may reach beyond the image: the average is that of its voxels in the image.
    beyond = [
        max(0, stride * count - side) for stride, count, side in zip(strides, cells, labels.shape[1:], strict=True)
    ]
    padding = [amount for missing in reversed(beyond) for amount in (0, missing)]
    inside, counted, ignored = (
        adaptive_avg_pool3d(pad(volume, padding), cells) for volume in (torch.ones_like(ignored), counted, ignored)
    )
    return counted / inside, ignored[:, 0] == 0


class DeepSupervisionTerm(LossTerm):
    """Dice plus cross-entropy of coarser decoder layers against the class fractions of their cells.

    Each layer gets a 1x1x1 convolution of its own, which belongs to the loss: the deployed network does not have it.
    The loss is the sum over the layers, each with its weight (Lee et al., AISTATS 2015; nnU-Net halves the weight from
    one scale to the next). Labels are averaged over the cells of a layer, not sampled, so that small structures remain.

    The trainer's `FeatureInferer` must catch the layers: its `deep_layers` are `layers` of this term.

    Args:
        layers: name of each layer to its weight, the finest first.
        channels: number of channels of each layer, in the same order.
        num_classes: K.
        weight: number or schedule.
        pseudo_labels: whether the unlabelled cases count too, with the classes of `TrainingBatch.target_logits`.

    Raises:
        ValueError: without layers, or if `channels` has another length.
    """

    def __init__(
        self,
        layers: Mapping[str, float],
        channels: list[int],
        num_classes: int,
        weight: float | Schedule = 1.0,
        pseudo_labels: bool = False,
    ) -> None:
        super().__init__(weight)
        if not layers or len(layers) != len(channels):
            raise ValueError(f"DeepSupervisionTerm needs one number of channels per layer: {layers}, {channels}.")
        self.layers, self.num_classes, self.pseudo_labels = dict(layers), num_classes, pseudo_labels
        self.heads = nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in channels)

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        labels = batch.labels
        if self.pseudo_labels and batch.num_unlabelled > 0:
            labels = torch.cat([labels, pseudo_labels(batch.target_logits, 0.0)[0]])
        total = batch.logits[:0].sum()
        for (name, weight), head in zip(self.layers.items(), self.heads, strict=True):
            features = batch.deep_features[name][: len(labels)]
            target, counted = class_fractions(labels, self.num_classes, features.shape[2:])
            total = total + weight * _dice_and_cross_entropy(head(features), target, counted)
        return total


def _dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    ce = cross_entropy(logits, target, reduction="none")
    ce = (ce * counted).sum() / counted.sum().clamp(min=1)
    return ce + masked_dice_loss(logits.softmax(dim=1), target, counted[:, None])
