# SPDX-License-Identifier: Apache-2.0
"""The projection head; tests/golden/test_vnet.py compares its numbers with the published code."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import UserError
from scripts.networks.heads import ProjectionHead


def test_widths_follow_the_arguments():
    head = ProjectionHead(in_features=5, out_features=7)
    assert head(torch.randn(4, 5)).shape == (4, 7)
    # 5 * 7 + 7, two numbers a channel for batch norm, 7 * 7 + 7
    assert sum(p.numel() for p in head.parameters()) == 42 + 14 + 56
    assert ProjectionHead(5)(torch.randn(4, 5)).shape == (4, 32)


def test_embeddings_do_not_see_each_other_in_evaluation_mode_and_do_in_training_mode():
    head, rows = ProjectionHead(3, 4), torch.randn(6, 3)
    head.eval()
    torch.testing.assert_close(head(rows)[2:3], head(rows[2:3]))
    head.train()
    assert not torch.allclose(head(rows)[:2], head(rows[:2]))


def test_head_is_linear_norm_relu_linear():
    head, rows = ProjectionHead(3, 4).eval(), torch.randn(6, 3)
    first, norm, _, last = head
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    hidden = (rows @ first.weight.T + first.bias - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    hidden = (hidden * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(head(rows), hidden @ last.weight.T + last.bias)


def test_embeddings_of_another_width_are_refused_with_the_key_to_set():
    with pytest.raises(UserError, match=r"5.* 4: feature_channels"):
        ProjectionHead(5)(torch.randn(3, 4))
