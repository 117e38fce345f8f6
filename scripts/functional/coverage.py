# SPDX-License-Identifier: Apache-2.0
"""Points far from each other and from what is known: the greedy k-centre choice of core-set active learning."""

from __future__ import annotations

import torch


def farthest_first(points: torch.Tensor, known: torch.Tensor) -> tuple[list[int], list[float]]:
    """Order points so that each is the farthest from those before it (Sener and Savarese, ICLR 2018).

    Args:
        points: `(N, D)`.
        known: `(M, D)`, M at least 1, where one need not go any more.

    Returns:
        Indices in the order of choice, and for each point its Euclidean distance to the nearest of `known` and of the
        points chosen before it. Of equally far points the first is taken.
    """
    nearest = torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    order: list[int] = []
    distances = [0.0] * len(points)
    left = torch.ones(len(points), dtype=torch.bool)
    while left.any():
        index = int(nearest.masked_fill(~left, -1.0).argmax())
        order.append(index)
        distances[index] = float(nearest[index])
        left[index] = False
        nearest = torch.minimum(nearest, (points - points[index]).norm(dim=1))
    return order, distances
