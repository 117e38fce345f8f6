# SPDX-License-Identifier: Apache-2.0
"""Learned selectors: one per class for features, one per class for prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.networks.heads import Selector

MEMORY_WEIGHTINGS = ("reference", "normalised", "none")


class ClassSelectors(nn.Module):
    """Weights of features and prototypes in the contrast, learned with the loss (SemiSeg-Contrastive, ICCV 2021).

    A weight is a score divided by the mean score of its class, so weights have mean 1 and the contrast keeps its scale.
    Selectors send no gradient to the features or prototypes that they score.

    Memory weightings:
        `reference`: as in the published codes of SemiSeg-Contrastive and SS-Net. They divide along the wrong axis, each
            score by itself: all weights are 1, memory selectors learn nothing, and only the running statistics of their
            batch norms change.
        `normalised`: as in the papers: scores divided by their mean over the class's prototypes.
        `none`: all weights are 1, without memory selectors.

    Args:
        num_classes: K, background included.
        feature_dim: D, width of features and prototypes.
        memory_weighting: see above.

    Raises:
        ValueError: for an unknown `memory_weighting`.
    """

    def __init__(self, num_classes: int, feature_dim: int, memory_weighting: str = "normalised") -> None:
        super().__init__()
        if memory_weighting not in MEMORY_WEIGHTINGS:
            raise ValueError(
                f"memory_weighting must be one of {', '.join(MEMORY_WEIGHTINGS)}, got {memory_weighting!r}."
            )
        self.memory_weighting = memory_weighting
        self.feature = nn.ModuleList(Selector(feature_dim) for _ in range(num_classes))
        self.memory = nn.ModuleList(
            Selector(feature_dim) for _ in range(0 if memory_weighting == "none" else num_classes)
        )

    def feature_scores(self, class_id: int, features: torch.Tensor) -> torch.Tensor:
        """Unnormalised scores `(N,)` in (0, 1) of features `(N, D)`."""
        return self.feature[class_id](features.detach())

    def feature_weights(self, class_id: int, features: torch.Tensor) -> torch.Tensor:
        """Weights `(N,)` with mean 1 of features `(N, D)`."""
        scores = self.feature_scores(class_id, features)
        return scores / scores.mean()

    def memory_weights(self, class_id: int, prototypes: torch.Tensor) -> torch.Tensor:
        """Weights `(M,)` with mean 1 of prototypes `(M, D)`; the selector receives them scaled to unit length."""
        if self.memory_weighting == "none":
            return prototypes.new_ones(len(prototypes))
        scores = self.memory[class_id](normalize(prototypes.detach(), dim=1))
        return scores / (scores if self.memory_weighting == "reference" else scores.mean())
