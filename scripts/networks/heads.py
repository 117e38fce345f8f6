# SPDX-License-Identifier: Apache-2.0
"""Small perceptrons that exist during training only: they are never part of the deployed network."""

from __future__ import annotations

import torch
from torch import nn

from scripts.errors import BundleError


class EmbeddingHead(nn.Sequential):
    """Linear, batch norm, ReLU, linear on feature rows: `(N, in_features)` to `(N, out_features)`.

    Both heads of SS-Net (Wu et al., MICCAI 2022) have this form: the projection head maps embeddings into the space of
    the prototypes, the prediction head maps projections of the current features onto those in the memory.

    Args:
        in_features: width of a row.
        out_features: width of the hidden layer and of the result.

    Raises:
        BundleError: when called with rows of another width.
    """

    def __init__(self, in_features: int, out_features: int = 32) -> None:
        super().__init__(
            nn.Linear(in_features, out_features),
            nn.BatchNorm1d(out_features),
            nn.ReLU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the new width."""
        if rows.shape[1] != self[0].in_features:
            raise BundleError(
                f"A projection or prediction head for features of width {self[0].in_features} got {rows.shape[1]}: "
                "feature_channels must be the number of channels of tap_layer."
            )
        return super().forward(rows)
