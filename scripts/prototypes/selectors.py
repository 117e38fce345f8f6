# SPDX-License-Identifier: Apache-2.0
"""One learned selector per class for features, one for memory embeddings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.networks.heads import Selector

MEMORY_WEIGHTINGS = ("reference", "normalised", "none")


class ClassSelectors(nn.Module):
    """Weights of features and prototypes in the contrast, learned with the loss (SemiSeg-Contrastive, ICCV 2021).

    A weight is a score divided by the mean score of its class, so weights have mean 1 and the contrast keeps its scale.
    Neither path sends a gradient to the features: selectors judge embeddings, they do not move them.

    Memory weightings:
        `reference`: what the published codes of SemiSeg-Contrastive and SS-Net compute. They rescale along the wrong
            axis, each score by itself: all weights are 1, memory selectors learn nothing, and only the running
            statistics of their batch norms move.
        `normalised`: what the papers describe, scores divided by their mean over the class's memory embeddings.
        `none`: ones, without evaluating a selector; this class then has no memory selectors.

    Args:
        num_classes: K, background included.
        feature_dim: D, width of features and prototypes.
        memory_weighting: see above.

    Raises:
        ValueError: for another `memory_weighting`.
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
        """Scores `(N,)` in (0, 1) of features `(N, D)`, as they are: not normalised."""
        return self.feature[class_id](features.detach())

    def feature_weights(self, class_id: int, features: torch.Tensor) -> torch.Tensor:
        """Weights `(N,)` with mean 1."""
        scores = self.feature_scores(class_id, features)
        return scores / scores.mean()

    def memory_weights(self, class_id: int, embeddings: torch.Tensor) -> torch.Tensor:
        """Weights `(M,)` with mean 1 of memory embeddings `(M, D)`, which the selector sees at length 1."""
        if self.memory_weighting == "none":
            return embeddings.new_ones(len(embeddings))
        scores = self.memory[class_id](normalize(embeddings.detach(), dim=1))
        return scores / (scores if self.memory_weighting == "reference" else scores.mean())
