# SPDX-License-Identifier: Apache-2.0
"""Which rows of a class are kept when there are more than fit."""

from __future__ import annotations

import torch

SELECTIONS = ("random", "highest", "lowest")


def select_rows(count: int, limit: int, selection: str, scores: torch.Tensor | None = None) -> torch.Tensor:
    """Indices of the rows to keep, at most `limit` of `count`.

    Args:
        count: rows offered.
        limit: rows wanted; when `count` is not larger, all are kept in their order.
        selection: `random` (torch's generator), `highest` or `lowest` of `scores`. The published codes of SS-Net and
            SemiSeg-Contrastive sort ascending and keep the first, so `lowest` is what they do; `highest` is what
            their papers say.
        scores: `(count,)`, needed for `highest` and `lowest`.

    Returns:
        int64 indices; for `highest` and `lowest` best first.

    Raises:
        ValueError: for an unknown `selection`, or one that needs scores when there are none.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
    if count <= limit:
        return torch.arange(count)
    if selection == "random":
        return torch.randperm(count)[:limit]
    if scores is None:
        raise ValueError(f"selection={selection!r} ranks rows by scores, but no scores were given.")
    return scores.argsort(descending=selection == "highest", stable=True)[:limit]
