# SPDX-License-Identifier: Apache-2.0
"""The learned selector: a score in (0, 1) for each feature row."""

from __future__ import annotations

import torch
from torch import nn


class Selector(nn.Sequential):
    """Linear, batch norm, LeakyReLU(0.2), linear, sigmoid: rows `(N, D)` to scores `(N,)` in (0, 1).

    How much a row says about its class, in SemiSeg-Contrastive (Alonso et al., ICCV 2021, section 3.3) and SS-Net (Wu
    et al., MICCAI 2022). In training mode the batch norm needs at least two rows.

    Args:
        feature_dim: D.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__(
            nn.Linear(feature_dim, feature_dim),
            nn.BatchNorm1d(feature_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(feature_dim, 1),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores of rows."""
        return super().forward(rows.to(self[0].weight.dtype)).sigmoid()[:, 0]
