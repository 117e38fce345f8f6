# SPDX-License-Identifier: Apache-2.0
"""Losses of the labelled cases, also on coarser layers of the decoder, and the Dice losses of the literature.

MONAI's `DiceLoss` does not offer the forms of Dice here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.functional import adaptive_avg_pool3d, cross_entropy, one_hot, pad

from scripts.errors import UserError
from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.prototypes.voxels import NO_CLASS, pseudo_labels, stride_of


def linear_dice_loss(prediction: torch.Tensor, target: torch.Tensor, smooth: float = 1e-8) -> torch.Tensor:
    """`1 - (2 sum(p t) + s) / (sum p + sum t + s)` over all elements at once, cases and classes alike.

    With soft targets it is not 0 for identical inputs; it is lowest if both are certain.

    Args:
        prediction: values in [0, 1], any shape.
        target: values in [0, 1], the same shape.
        smooth: s; 1e-8 in SS-Net (Wu et al., MICCAI 2022). Two empty inputs then give 0.

    Returns:
        A scalar in [0, 1].
    """
    overlap = (prediction * target).sum()
    return 1.0 - (2.0 * overlap + smooth) / (prediction.sum() + target.sum() + smooth)


def squared_dice_loss(prediction: torch.Tensor, target: torch.Tensor, smooth: float = 1e-10) -> torch.Tensor:
    """Mean over classes of `1 - (2 sum(p t) + s) / (sum p^2 + sum t^2 + s)`, sums over cases and voxels.

    The form of Milletari et al. (3DV 2016), background included, as in SS-Net and BCP; 0 for identical inputs.

    Args:
        prediction: probabilities `(B, K, ...)`.
        target: one-hot classes or probabilities, the same shape.
        smooth: s; 1e-10 in the published codes.

    Returns:
        A scalar in [0, 1].
    """
    axes = [0, *range(2, prediction.ndim)]
    overlap = (prediction * target).sum(axes)
    size = prediction.square().sum(axes) + target.square().sum(axes)
    return (1.0 - (2.0 * overlap + smooth) / (size + smooth)).mean()


def masked_dice_loss(probabilities: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `1 - (2 sum(p t) + s) / (sum p + sum t + s)` over the foreground classes that the target holds.

    Sums run over cases and voxels where the mask is true; s is 1e-5.

    Args:
        probabilities: `(B, K, ...)`.
        target: one-hot classes, the same shape.
        mask: bool `(B, 1, ...)`.

    Returns:
        A scalar in [0, 1]; 0 with a zero gradient if the target holds no foreground class.
    """
    axes = [0, *range(2, probabilities.ndim)]
    probabilities = probabilities * mask
    target = target * mask
    overlap = (probabilities * target).sum(axes)[1:]
    size = (probabilities.sum(axes) + target.sum(axes))[1:]
    present = target.sum(axes)[1:] > 0
    losses = 1.0 - (2.0 * overlap + 1e-5) / (size + 1e-5)
    return (losses * present).sum() / present.sum().clamp(min=1)


def check_weights(weights: Sequence[float], num_classes: int) -> None:
    """Raise a `UserError` unless there is a weight for each class."""
    if len(weights) != num_classes:
        raise UserError(
            f"class_weights has {len(weights)} numbers, but there are {num_classes} classes: give one for each class, "
            "background first."
        )


class SupervisedTerm(LossTerm):
    """Dice plus cross-entropy on the labelled cases (MONAI's `DiceCELoss`).

    Dice is computed over the whole batch and without background, so that a class absent from one small patch is not
    pushed towards an empty prediction.

    Args:
        weight: number or schedule.
        dice_weight: weight of the Dice part, at least 0.
        class_weights: K numbers of at least 0, background first; `None` for ones. Cross-entropy is the mean over voxels
            weighted by their class; the Dice loss of each foreground class is multiplied by its weight.

    Raises:
        UserError: in `forward`, if there are not as many weights as classes.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        dice_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight)
        weights = None if class_weights is None else torch.tensor([float(each) for each in class_weights])
        self.loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            lambda_dice=dice_weight,
            weight=weights,
        )
        self.class_weights = class_weights
        for module in self.loss.modules():  # a setting and no state: a resumed run takes it from its configuration
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        logits, labels = batch.labelled_voxels
        if self.class_weights is not None:
            check_weights(self.class_weights, logits.shape[1])
        if labels.numel() == 0:
            return batch.logits[:0].sum()
        return self.loss(logits, labels[:, None])


class LinearDiceTerm(LossTerm):
    """Linear Dice on the labelled cases without cross-entropy, as SS-Net (Wu et al., MICCAI 2022) trains.

    `linear_dice_loss` of a class's probability, over the whole batch.

    Args:
        weight: number or schedule.
        classes: `foreground` for the mean over all classes except background, or `first` for class 1 alone, as in the
            published code. With two classes both are the same.
        class_weights: K numbers of at least 0, background first, by which the loss of each class is multiplied; `None`
            for ones.

    Raises:
        ValueError: for an unknown `classes`.
        UserError: in `forward`, if there are not as many weights as classes.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        classes: str = "foreground",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(weight)
        if classes not in ("foreground", "first"):
            raise ValueError(f"LinearDiceTerm: classes must be 'foreground' or 'first', got {classes!r}.")
        self.classes, self.class_weights = classes, None if class_weights is None else list(class_weights)

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        logits, labels = batch.labelled_voxels
        weights = self.class_weights or [1.0] * logits.shape[1]
        check_weights(weights, logits.shape[1])
        if labels.numel() == 0:
            return batch.logits[:0].sum()
        probabilities = logits.softmax(dim=1)
        last = probabilities.shape[1] if self.classes == "foreground" else 2
        losses = [weights[c] * linear_dice_loss(probabilities[:, c], (labels == c).float()) for c in range(1, last)]
        return torch.stack(losses).mean()


def class_fractions(labels: torch.Tensor, num_classes: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Average labels over the cells of a coarser grid.

    Args:
        labels: `(B, D, H, W)`, int64 in [0, K) or `NO_CLASS`.
        num_classes: K.
        shape: of the coarser grid, `(d, h, w)`.

    Returns:
        Fraction of each class among the voxels of a cell that have one, `(B, K, d, h, w)`, float32, and a bool mask
        `(B, d, h, w)` of the cells with such a voxel. Of a slice that is labelled alone, no cell is lost.
    """
    known = (labels != NO_CLASS).float()[:, None]
    counted = one_hot(labels.clamp(min=0), num_classes).movedim(-1, 1) * known
    cells = (shape[0], shape[1], shape[2])
    strides = [stride_of(side, count) or 0 for side, count in zip(labels.shape[1:], cells, strict=True)]
    # The last cell may reach beyond the image: the average is that of its voxels in the image.
    beyond = [
        max(0, stride * count - side) for stride, count, side in zip(strides, cells, labels.shape[1:], strict=True)
    ]
    padding = [amount for missing in reversed(beyond) for amount in (0, missing)]
    known, counted = (adaptive_avg_pool3d(pad(volume, padding), cells) for volume in (known, counted))
    return counted / torch.where(known > 0, known, 1.0), known[:, 0] > 0


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
