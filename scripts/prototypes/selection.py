# SPDX-License-Identifier: Apache-2.0
"""How many features of a class enter the memory in a step, and which ones."""

from __future__ import annotations

import torch

from scripts.prototypes.selectors import ClassSelectors

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
        count: embeddings offered.
        limit: embeddings wanted; when `count` is not larger, all are kept in their order.
        selection: `random` (torch's generator); `confidence`, the highest scores, which are the network's
            probabilities; `highest` or `lowest`, where the scores come from a learned selector. The published codes of
            SS-Net and SemiSeg-Contrastive sort selector scores ascending and keep the first, so `lowest` is what they
            do; `highest` is what their papers say.
        scores: `(count,)`, needed for all but `random`.

    Returns:
        int64 indices, on the scores' device; ranked ones best first.

    Raises:
        ValueError: for an unknown `selection`, or one that needs scores when there are none.
    """
    check_selection(selection)
    if count <= limit:
        return torch.arange(count)
    if selection == "random":
        return torch.randperm(count)[:limit]
    if scores is None:
        raise ValueError(f"selection={selection!r} ranks embeddings by scores, but no scores were given.")
    return scores.argsort(descending=selection != "lowest", stable=True)[:limit]


def embeddings_per_image(capacity: int, images: int, num_classes: int, sampling: str = "image") -> int:
    """Rows of a class that one image offers to a first-in-first-out memory, so that all images fill it once.

    `image`: `max(1, round(capacity / images))`. `class`: a third of the number of classes times as many. Both are rules
    of SemiSeg-Contrastive (Alonso et al., ICCV 2021), whose code rounds half to even and cuts the second with `int`.

    Args:
        capacity: embeddings that the memory holds of a class, at least 1.
        images: labelled images, at least 1.
        num_classes: K, for `class`.
        sampling: `image` or `class`.

    Raises:
        ValueError: for another `sampling`.
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
    """At most `limit` features of a class, best first where they are ranked, else in their order.

    As in the published codes, selectors are evaluated only where there are more features than fit, and in the mode
    they are in: a selector in training mode then moves its running statistics.

    Args:
        class_id: the class of all of them.
        features: `(N, D)`; selectors want them projected. Rows that hold a NaN or an infinity are left out first.
        limit: most features wanted.
        selection: see `scripts.prototypes.selection.select_indices`.
        probabilities: `(N,)`, the network's for this class; needed for `confidence`.
        selectors: needed for `highest` and `lowest`.

    Returns:
        `(min(N, limit), D)` for N finite embeddings.

    Raises:
        ValueError: if what `selection` needs is missing.
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
