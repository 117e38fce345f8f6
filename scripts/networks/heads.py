# SPDX-License-Identifier: Apache-2.0
"""Small perceptrons that are used in training only: projection and prediction heads, and the learned selector."""

from __future__ import annotations

import torch
from torch import nn

from scripts.errors import UserError


class ProjectionHead(nn.Sequential):
    """Linear, batch norm, ReLU, linear on embeddings: `(N, in_features)` to `(N, out_features)`.

    Both heads of SS-Net (Wu et al., MICCAI 2022) have this form. The projection head maps features to the space of the
    prototypes; the prediction head maps projections of the current features to the prototypes in the memory.

    Args:
        in_features: width of an embedding.
        out_features: width of the hidden layer and of the result.

    Raises:
        UserError: when called with embeddings of a different width.
    """

    def __init__(self, in_features: int, out_features: int = 32) -> None:
        super().__init__(
            nn.Linear(in_features, out_features),
            nn.BatchNorm1d(out_features),
            nn.ReLU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        if embeddings.shape[1] != self[0].in_features:
            raise UserError(
                f"This projection or prediction head takes features of width {self[0].in_features}, but got "
                f"{embeddings.shape[1]}: feature_channels must be the number of channels of feature_layer."
            )
        return super().forward(embeddings)


class Selector(nn.Sequential):
    """Linear, batch norm, LeakyReLU(0.2), linear, sigmoid: embeddings `(N, D)` to scores `(N,)` in (0, 1).

    A score says how informative an embedding is for its class: SemiSeg-Contrastive (Alonso et al., ICCV 2021, section
    3.3) and SS-Net (Wu et al., MICCAI 2022). In training mode the batch norm needs at least two embeddings.

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

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return super().forward(embeddings.to(next(self.parameters()).dtype)).sigmoid()[:, 0]
