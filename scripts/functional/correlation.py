# SPDX-License-Identifier: Apache-2.0
"""Second-order statistics of features, and how far two sets of them differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy


def covariance(rows: torch.Tensor) -> torch.Tensor:
    """Covariance of feature rows `(N, D)`, N at least 2, with the divisor N - 1: `(D, D)`, in float32 or wider."""
    width = rows.shape[1]
    # torch.cov makes a scalar of a 1 by 1 matrix.
    return torch.cov(rows.T.to(torch.promote_types(rows.dtype, torch.float32))).reshape(width, width)


def correlation_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`|| A - B ||_F^2 / (4 d^2)` of two covariances `(d, d)`: the CORAL loss (Sun & Saenko, ECCV 2016 workshops)."""
    return (first - second).square().sum() / (4 * len(first) ** 2)


def pool_distances(covariances: Sequence[torch.Tensor], pool: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distance of each of P covariances `(d, d)` to each of Q others, flat `(P * Q,)`, row by row."""
    return torch.stack([correlation_distance(first, second) for first in covariances for second in pool])


def cross_view_entropy(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`-1/n sum_i s_i log softmax(f)_i` of two views' distances f and s, both `(n,)`: CORN's published code.

    s is no distribution and carries a gradient, so this is smallest where the second view's distances to the
    covariances of all classes vanish, and hardly moves the first view while distances are small. With n = 1 it is 0.
    """
    return cross_entropy(first, second) / len(first)
