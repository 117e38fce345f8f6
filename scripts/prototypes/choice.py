# SPDX-License-Identifier: Apache-2.0
"""Which of a class's features enter the memory."""

from __future__ import annotations

import torch

from scripts.functional.selection import BY_SELECTOR, select_rows
from scripts.prototypes.selectors import ClassSelectors


def choose_features(
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
        selection: see `scripts.functional.selection.select_rows`.
        probabilities: `(N,)`, the network's for this class; needed for `confidence`.
        selectors: needed for `highest` and `lowest`.

    Returns:
        `(min(N, limit), D)` for N finite rows.

    Raises:
        ValueError: if what `selection` needs is missing.
    """
    finite = features.isfinite().all(dim=1)
    features = features[finite]
    scores = None if probabilities is None else probabilities[finite]
    if selection in BY_SELECTOR:
        if selectors is None:
            raise ValueError(
                f"selection={selection!r} ranks features by a learned selector, but there are no selectors."
            )
        if len(features) > limit:
            with torch.no_grad():
                scores = selectors.feature_scores(class_id, features)
    kept = select_rows(len(features), limit, selection, scores)
    return features[kept.to(features.device)]
