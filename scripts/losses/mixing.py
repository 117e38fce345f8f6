# SPDX-License-Identifier: Apache-2.0
"""Bidirectional copy-paste of labelled and unlabelled cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import MaskedDiceLoss
from monai.networks import one_hot
from torch.nn.functional import cross_entropy

from scripts.images.components import largest_components
from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.prototypes.voxels import NO_CLASS


def random_box(shape: Sequence[int], fraction: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Draw a box with `fraction` of each side of the volume, at a uniformly random position.

    Its sides are rounded down to whole voxels, at least 1. The position is drawn from torch's generator on the CPU, so
    that all devices draw the same box.

    Args:
        shape: D, H, W.
        fraction: in (0, 1).
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

    Each labelled case is pasted into an unlabelled one and the reverse, through the same box. Labels and the teacher's
    pseudo-labels are pasted in the same way, and the network segments both mixtures in a further pass:

    `sum over the two directions of [ S(labelled part) + unlabelled_weight * S(unlabelled part) ]`,
    `S(part) = (Dice + cross-entropy) / 2`

    Dice is computed for each case over all classes, background included; cross-entropy is the mean over the part's
    voxels. If there are fewer cases of one kind than of the other, they are used several times.

    Differences from the authors' code: it pastes half of the labelled cases one way and the other half the other way
    (here each pair is pasted both ways, so that one case of each kind is enough); its box never reaches the last
    position along an axis; its teacher runs in training mode; its running statistics come from mixtures only (here from
    whole cases only, since this pass does not change them).

    Args:
        weight: number or schedule.
        fraction: side of the box relative to the patch, in (0, 1); 2/3 in the paper.
        unlabelled_weight: weight of the pseudo-labelled part, alpha in the paper, at least 0.
        largest_component: whether pseudo-labels keep only the largest connected component of each foreground class, as
            in the authors' code; not for structures that have several components.

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
        self.dice = MaskedDiceLoss(softmax=True)

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
        half = len(pairs)
        return self._mixture_loss(logits[:half], targets[:half], ~box) + self._mixture_loss(
            logits[half:], targets[half:], box
        )

    def _pseudo_labels(self, batch: TrainingBatch) -> torch.Tensor:
        labels = batch.target_logits.argmax(dim=1)
        return largest_components(labels) if self.largest_component else labels

    def _mixture_loss(self, logits: torch.Tensor, targets: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """Loss of both parts of mixtures `(P, K, D, H, W)`; `labelled` `(D, H, W)` is true in the labelled part.

        Ignored voxels of the labelled part are left out.
        """
        return self._part_loss(logits, targets, labelled) + self.unlabelled_weight * self._part_loss(
            logits, targets, ~labelled
        )

    def _part_loss(self, logits: torch.Tensor, targets: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        counted = part & (targets != NO_CLASS)
        if not bool(counted.any()):
            return logits[:0].sum()
        ce = cross_entropy(logits, targets.masked_fill(~part, NO_CLASS), ignore_index=NO_CLASS)
        # MONAI's `to_onehot_y` is applied after its mask, which would turn masked voxels into background.
        target = one_hot(targets.clamp(min=0)[:, None], logits.shape[1])
        return (ce + self.dice(logits, target, counted[:, None].to(logits.dtype))) / 2


def _both_ways(labelled: torch.Tensor, unlabelled: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Mix `(P, ...)` cases of each kind to `(2 P, ...)` mixtures."""
    return torch.cat([torch.where(box, unlabelled, labelled), torch.where(box, labelled, unlabelled)])
