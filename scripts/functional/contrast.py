# SPDX-License-Identifier: Apache-2.0
"""Distances between features and class prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize, softplus


def cosine_similarity(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair: rows `(N, D)` and `(M, D)` to `(N, M)`; 0 where a row is zero, which has no direction."""
    return normalize(features, dim=1) @ normalize(prototypes, dim=1).T


def cosine_distance(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """`1 - cosine similarity` of every pair: rows `(N, D)` and `(M, D)` to `(N, M)`, values in [0, 2].

    A zero row has no direction; its distance to everything is 1.
    """
    return 1.0 - cosine_similarity(features, prototypes)


def class_contrast(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    feature_weights: torch.Tensor | None = None,
    memory_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean weighted cosine distance of one class's features to its memory.

    `mean_{n,m} w_n v_m (1 - cos(f_n, p_m))`, the class loss of the method document and of SS-Net (Wu et al., MICCAI
    2022).

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: `(M, D)`, M at least 1; constants.
        feature_weights: w `(N,)` with mean 1, or `None` for ones.
        memory_weights: v `(M,)` with mean 1, or `None` for ones.
    """
    distances = cosine_distance(features, prototypes)
    if feature_weights is not None:
        distances = distances * feature_weights[:, None]
    if memory_weights is not None:
        distances = distances * memory_weights[None]
    return distances.mean()


def class_info_nce(
    features: torch.Tensor, prototypes: torch.Tensor, others: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding one class's memory among all classes' with features of that class.

    `mean_n [log sum_{all m} exp(cos(f_n, p_m) / t) - log sum_{own m} exp(cos(f_n, p_m) / t)]`: the supervised contrast
    of Khosla et al. (NeurIPS 2020, eq. 3, its sum inside the logarithm), against prototypes. At least 0, and finite
    for a small t too, as both sums stay logarithms.

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: of the class, `(M, D)`, M at least 1; constants.
        others: of all other classes, `(L, D)`, L at least 1; constants.
        temperature: t, above 0.
    """
    own, rest = (
        (cosine_similarity(features, rows).float() / temperature).logsumexp(dim=1) for rows in (prototypes, others)
    )
    return softplus(rest - own).mean()


def average_over_classes(losses: Sequence[torch.Tensor], num_classes: int, divisor: str) -> torch.Tensor:
    """Average class losses over the classes that contributed, or over all of them.

    Args:
        losses: one scalar per class that contributed, at least one.
        num_classes: K.
        divisor: `present` divides by `len(losses)`; `all` by K, so that skipped classes count as 0 (published codes).

    Raises:
        ValueError: for another `divisor`.
    """
    if divisor not in ("present", "all"):
        raise ValueError(f"divisor must be 'present' or 'all', got {divisor!r}.")
    return torch.stack(list(losses)).sum() / (len(losses) if divisor == "present" else num_classes)
