# SPDX-License-Identifier: Apache-2.0
"""Loss terms that compare features with the prototypes of their class, or with class means of the batch."""

from __future__ import annotations

import logging

import torch
from torch import nn

from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.prototypes.loss import ContrastivePrototypeLoss, check_margin, compactness, separation
from scripts.prototypes.voxels import labels_on_grid, pseudo_labels, sample_per_class, voxel_embeddings

logger = logging.getLogger("ContrastTerm")

PATIENCE = 50
"""Number of consecutive steps without a pair of feature and prototype after which a term logs a warning."""


class ContrastTerm(LossTerm):
    """Base class of both contrast terms. It applies the loss, and warns once if there is no pair for many steps.

    With two classes, and a memory that accepts only correctly predicted foreground, the loss can be zero for a whole
    run. The warning says what is missing.

    Args:
        loss: shared by all contrast terms, so that they use the same heads and memory.
        weight: number or schedule.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.loss = loss
        self._steps_without_pair = 0

    def contrast(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of feature maps `(B, F, d, h, w)`, given labels `(B, D, H, W)` on any grid."""
        labels = labels_on_grid(labels, features.shape[2:])
        value = self.loss(features, labels)
        self._steps_without_pair = 0 if self.loss.contributing else self._steps_without_pair + 1
        if self._steps_without_pair == PATIENCE and (reason := self.loss.missing_pairs(labels)):
            logger.warning(
                f"{type(self).__name__} was 0 for {PATIENCE} steps: {reason}. Check which voxels enter the memory "
                "(only_correct, include_background and confidence of MemoryBankUpdater) and which are compared with it "
                "(labelled ones, and pseudo-labels above the term's confidence)."
            )
        return value


class LabelledContrastTerm(ContrastTerm):
    """`ContrastivePrototypeLoss` on the labelled cases, using their labels. Arguments: see `ContrastTerm`."""

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        return self.contrast(batch.labelled_features, batch.labels)


class UnlabelledContrastTerm(ContrastTerm):
    """`ContrastivePrototypeLoss` on the unlabelled cases, using their pseudo-labels.

    Args:
        loss: see `ContrastTerm`.
        weight: number or schedule.
        confidence: minimum probability in [0, 1] of a pseudo-label; 0 uses every voxel.
    """

    def __init__(self, loss: ContrastivePrototypeLoss, weight: float | Schedule = 1.0, confidence: float = 0.9) -> None:
        super().__init__(loss, weight)
        self.confidence = confidence

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        labels, _ = pseudo_labels(batch.target_logits, self.confidence)
        return self.contrast(batch.unlabelled_features, labels)


class _ClusterTerm(LossTerm):
    """Base class that selects and projects embeddings; subclasses compute the loss from them."""

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        projection_head: nn.Module | None = None,
        unlabelled: bool = False,
        confidence: float = 0.9,
        samples_per_class: int | None = 256,
    ) -> None:
        super().__init__(weight)
        self.projection_head = projection_head if projection_head is not None else nn.Identity()
        self.unlabelled = unlabelled
        self.confidence = confidence
        self.samples_per_class = samples_per_class

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        features, labels, num_classes = batch.labelled_features, batch.labels, batch.logits.shape[1]
        if self.unlabelled:
            features = batch.features
            labels = torch.cat([labels, pseudo_labels(batch.target_logits, self.confidence)[0]])
        flat = labels_on_grid(labels, features.shape[2:]).reshape(-1)
        chosen = sample_per_class(flat, num_classes, self.samples_per_class)
        if len(chosen) < 2:  # there is no pair, and a batch norm in the head needs two embeddings
            return features[:0].sum()
        return self.distance(self.projection_head(voxel_embeddings(features, chosen)), flat[chosen], num_classes)

    def distance(self, embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Return the loss of embeddings `(N, D)` with labels `(N,)`."""
        raise NotImplementedError


class CompactnessTerm(_ClusterTerm):
    """Distance of features to the mean direction of their class: `scripts.prototypes.loss.compactness`.

    This is the intra-class loss of the method document. Gradients flow through features and means.

    Args:
        weight: number or schedule.
        projection_head: embeddings `(N, C)` to `(N, D)`; `None` uses the features themselves.
        unlabelled: whether unlabelled voxels are used too, with their pseudo-labels.
        confidence: minimum probability in [0, 1] of a pseudo-label.
        samples_per_class: maximum number of voxels of a class, drawn at random; `None` for all.
    """

    def distance(self, embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        return compactness(embeddings, labels, num_classes)


class SeparationTerm(_ClusterTerm):
    """Hinge loss on the distance between class means: `scripts.prototypes.loss.separation`.

    This is the inter-class loss of the method document. Gradients reach the features of both classes.

    Args:
        weight: number or schedule.
        projection_head: see `CompactnessTerm`.
        unlabelled: see `CompactnessTerm`.
        confidence: see `CompactnessTerm`.
        samples_per_class: see `CompactnessTerm`.
        margin: minimum cosine distance in (0, 2] between two class means; 1 is orthogonal, 2 is opposite.

    Raises:
        ValueError: for a margin outside (0, 2].
    """

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        projection_head: nn.Module | None = None,
        unlabelled: bool = False,
        confidence: float = 0.9,
        samples_per_class: int | None = 256,
        margin: float = 1.0,
    ) -> None:
        super().__init__(weight, projection_head, unlabelled, confidence, samples_per_class)
        check_margin(margin)
        self.margin = margin

    def distance(self, embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        return separation(embeddings, labels, num_classes, self.margin)
