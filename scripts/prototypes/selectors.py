# SPDX-License-Identifier: Apache-2.0
"""Learned selectors (for each class, one for features and one for prototypes), and selection for the memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.networks.heads import Selector
from scripts.prototypes.voxels import draw_indices

MEMORY_WEIGHTINGS = ("reference", "normalised", "none")


class ClassSelectors(nn.Module):
    """Learned weights of features and prototypes in the contrastive loss (SemiSeg-Contrastive, ICCV 2021).

    A weight is a score divided by the mean score of its class, so weights have mean 1 and the contrast keeps its scale.
    Selectors send no gradient to the features or prototypes that they score.

    Memory weightings:
        `reference`: as in the published code of SemiSeg-Contrastive and SS-Net, which divides along the wrong axis, so
            that each score is divided by itself. All weights are then 1, the memory selectors learn nothing, and only
            the running statistics of their batch norms change.
        `normalised`: as in the papers. Each score is divided by the mean over the class's prototypes.
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
        """Weights `(M,)` with mean 1 of prototypes `(M, D)`, which are scaled to unit length for the selector."""
        if self.memory_weighting == "none":
            return prototypes.new_ones(len(prototypes))
        scores = self.memory[class_id](normalize(prototypes.detach(), dim=1))
        return scores / (scores if self.memory_weighting == "reference" else scores.mean())


BY_SELECTOR = ("highest", "lowest")
SELECTIONS = ("random", "confidence", *BY_SELECTOR)
SAMPLINGS = ("image", "class")


def check_selection(selection: str, has_selectors: bool = True) -> None:
    """Raise `ValueError` for an unknown `selection`, or one that needs selectors if there are none."""
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
    if selection in BY_SELECTOR and not has_selectors:
        raise ValueError(f"selection={selection!r} ranks features by learned selectors, but there are none.")


def select_indices(count: int, limit: int, selection: str, scores: torch.Tensor | None = None) -> torch.Tensor:
    """Indices of the embeddings to keep, at most `limit` of `count`.

    Args:
        count: number of embeddings available.
        limit: maximum number of embeddings to keep. If `count` is not larger, all are kept in their order.
        selection: `random` draws from torch's generator; `confidence` takes those with the highest probabilities;
            `highest` and `lowest` rank by the scores of a learned selector. The published code of SS-Net and
            SemiSeg-Contrastive sorts selector scores in ascending order and keeps the first (`lowest`); their papers
            say `highest`.
        scores: `(count,)`, needed for all selections except `random`.

    Returns:
        int64 indices, best first if they are ranked.

    Raises:
        ValueError: for an unknown `selection`, or one that needs scores when there are none.
    """
    check_selection(selection)
    if count <= limit:
        return torch.arange(count)
    if selection == "random":
        return draw_indices(count, limit)
    if scores is None:
        raise ValueError(f"selection={selection!r} ranks embeddings by scores, but there are none.")
    return scores.argsort(descending=selection != "lowest", stable=True)[:limit]


def embeddings_per_image(capacity: int, images: int, num_classes: int, sampling: str = "image") -> int:
    """Number of embeddings per class to store from one image, so that all images together fill a `fifo` memory once.

    `image` gives n = `round(capacity / images)`, and `class` gives `int(num_classes / 3 * n)`; the result is at least
    1. Both rules are from SemiSeg-Contrastive (Alonso et al., ICCV 2021), whose code rounds half to even.

    Args:
        capacity: number of prototypes that the memory holds per class, at least 1.
        images: number of labelled images, at least 1.
        num_classes: K, used by `class`.
        sampling: `image` or `class`.

    Raises:
        ValueError: for an unknown `sampling`.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}.")
    embeddings = round(capacity / images)
    if sampling == "class":
        embeddings = int(num_classes / 3 * embeddings)
    return max(1, embeddings)


def choose_embeddings(
    class_id: int,
    features: torch.Tensor,
    limit: int,
    selection: str,
    probabilities: torch.Tensor | None = None,
    selectors: ClassSelectors | None = None,
) -> torch.Tensor:
    """Select at most `limit` features of a class, best first if they are ranked.

    As in the published code, selectors are evaluated only if there are more features than `limit`. They are evaluated
    in their current mode, so a selector in training mode updates its running statistics.

    Args:
        class_id: the features' class.
        features: `(N, D)`; they must be projected if selectors rank them. Features with a NaN or an infinity are
            removed first.
        limit: maximum number of features.
        selection: see `select_indices`.
        probabilities: `(N,)`, the network's probabilities of this class; needed for `confidence`.
        selectors: needed for `highest` and `lowest`.

    Returns:
        `(min(N, limit), D)` for N finite embeddings.

    Raises:
        ValueError: for an unknown `selection`, or one whose probabilities or selectors are missing.
    """
    check_selection(selection, has_selectors=selectors is not None)
    finite = features.isfinite().all(dim=1)
    features = features[finite]
    scores = None if probabilities is None else probabilities[finite]
    if selection in BY_SELECTOR and selectors is not None and len(features) > limit:
        with torch.no_grad():
            scores = selectors.feature_scores(class_id, features)
    kept = select_indices(len(features), limit, selection, scores)
    return features[kept.to(features.device)]
