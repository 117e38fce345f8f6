# SPDX-License-Identifier: Apache-2.0
"""Bidirectional copy-paste of labelled and unlabelled cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks import one_hot
from torch.nn.functional import cross_entropy

from scripts.images.components import largest_components
from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.prototypes.voxels import NO_CLASS


def random_box(shape: Sequence[int], fraction: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Draw a box whose sides are `fraction` of the sides of the volume, at a uniformly random position.

    Its sides are rounded down to whole voxels, at least 1. The position is drawn from torch's generator on the CPU, so
    that all devices draw the same box.

    Args:
        shape: D, H, W.
        fraction: side of the box relative to the volume, in (0, 1).
        device: device of the result.

    Returns:
        bool `(D, H, W)`, true inside the box.
    """
    box = torch.zeros(tuple(shape), dtype=torch.bool, device=device)
    inside = box
    for axis, side in enumerate(shape):
        length = max(1, int(side * fraction))
        inside = inside.narrow(axis, int(torch.randint(side - length + 1, ())), length)
    inside.fill_(True)
    return box


class CopyPasteTerm(LossTerm):
    """Bidirectional copy-paste: BCP (Bai et al., CVPR 2023), section 3.

    Each labelled case is pasted into an unlabelled one and vice versa, with the same box. Labels and the teacher's
    pseudo-labels are pasted in the same way, and the network segments both mixtures in an additional pass:

    `sum over the two directions of [ S(labelled part) + unlabelled_weight * S(unlabelled part) ]`,
    `S(part) = (Dice + cross-entropy) / 2`

    Dice is computed for each case over all classes, background included; cross-entropy is the mean over the part's
    voxels. If there are fewer cases of one kind than of the other, they are used several times.

    Differences from the authors' code:

    - It pastes half of the labelled cases in one direction and the other half in the other direction. Here each pair is
      pasted in both directions, so that one case of each kind is enough.
    - Its box is never drawn at the last position along an axis.
    - Its teacher runs in training mode.
    - Its running statistics come from mixtures only. Here they come from whole cases only, because this pass does not
      change them.

    Args:
        weight: number or schedule.
        fraction: side of the box relative to the patch, in (0, 1); 2/3 in the paper.
        unlabelled_weight: weight of the pseudo-labelled part, alpha in the paper, at least 0.
        largest_component: whether pseudo-labels keep only the largest connected component of each foreground class, as
            in the authors' code. Set it to false for structures that have several components.

    Raises:
        ValueError: for a fraction outside (0, 1) or a negative weight.
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        fraction: float = 2 / 3,
        unlabelled_weight: float = 0.5,
        largest_component: bool = False,
    ) -> None:
        super().__init__(weight)
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"CopyPasteTerm: fraction must be in (0, 1), got {fraction}.")
        if unlabelled_weight < 0.0:
            raise ValueError(f"CopyPasteTerm: unlabelled_weight must be at least 0, got {unlabelled_weight}.")
        self.fraction = fraction
        self.unlabelled_weight = unlabelled_weight
        self.largest_component = largest_component

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        if batch.num_labelled == 0 or batch.num_unlabelled == 0:
            return batch.logits[:0].sum()
        pairs = torch.arange(max(batch.num_labelled, batch.num_unlabelled), device=batch.logits.device)
        labelled, unlabelled = pairs % batch.num_labelled, pairs % batch.num_unlabelled
        box = random_box(batch.logits.shape[2:], self.fraction, batch.logits.device)
        # First the mixtures with the unlabelled case inside the box, then those with the labelled case inside.
        images = _both_ways(batch.labelled_images[labelled], batch.unlabelled_images[unlabelled], box)
        targets = _both_ways(batch.labels[labelled], self._pseudo_labels(batch)[unlabelled], box)
        logits, _ = batch.forward_pass(images)
        first, second = part_losses(logits, targets, box)
        return first[1] + second[0] + self.unlabelled_weight * (first[0] + second[1])

    def _pseudo_labels(self, batch: TrainingBatch) -> torch.Tensor:
        labels = batch.target_logits.max(dim=1).indices  # on CPUs `max` is faster than `argmax`
        labels = largest_components(labels) if self.largest_component else labels
        return labels.masked_fill(batch.target_logits[:, 0].isnan(), NO_CLASS)


def part_losses(logits: torch.Tensor, targets: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Mean of Dice loss and cross-entropy, inside and outside of a box, for both halves of a batch of mixtures.

    The Dice loss of each case over all classes is `1 - (2 sum(p t) + s) / (sum p + sum t + s)` with s = 1e-5, as in
    MONAI's `MaskedDiceLoss`. One softmax and one pass over the voxels serve all four parts.

    Args:
        logits: `(2 P, K, D, H, W)`.
        targets: classes `(2 P, D, H, W)`, int64 in [0, K), or `NO_CLASS` for voxels to ignore.
        box: bool `(D, H, W)`.

    Returns:
        Losses `(2, 2)`, with the halves of the batch as rows and (inside, outside) as columns; 0 with a zero gradient
        for a part without voxels.
    """
    sides = torch.stack([box, ~box], dim=-1).flatten(0, 2).to(logits.dtype)  # a product with it sums over voxels
    counted = (targets != NO_CLASS).to(logits.dtype)
    voxels = (counted.flatten(1) @ sides).unflatten(0, (2, -1)).sum(dim=1)
    ce = cross_entropy(logits, targets, ignore_index=NO_CLASS, reduction="none")
    ce = (ce.flatten(1) @ sides).unflatten(0, (2, -1)).sum(dim=1) / voxels.clamp(min=1)
    probabilities = logits.softmax(dim=1) * counted[:, None]
    target = one_hot(targets.clamp(min=0)[:, None], logits.shape[1], dtype=logits.dtype)
    overlap = (probabilities * target).flatten(2) @ sides
    size = probabilities.flatten(2) @ sides + (target * counted[:, None]).flatten(2) @ sides
    dice = (1.0 - (2.0 * overlap + 1e-5) / (size + 1e-5)).mean(dim=1)
    return (ce + dice.unflatten(0, (2, -1)).mean(dim=1)) / 2


def _both_ways(labelled: torch.Tensor, unlabelled: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Mix `(P, ...)` cases of each kind to `(2 P, ...)` mixtures."""
    return torch.cat([torch.where(box, unlabelled, labelled), torch.where(box, labelled, unlabelled)])
