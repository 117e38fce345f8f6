# SPDX-License-Identifier: Apache-2.0
"""Cosine distances and averages worked out by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.prototypes.loss import average_over_classes, class_contrast, cosine_distance


def test_distance_depends_on_the_angle_alone():
    features = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-7.0, 0.0], [3.0, 4.0]])
    prototypes = torch.tensor([[10.0, 0.0], [0.0, 0.1], [4.0, 3.0]])
    expected = torch.tensor([[0.0, 1.0, 0.2], [1.0, 0.0, 0.4], [2.0, 1.0, 1.8], [0.4, 0.2, 0.04]])
    torch.testing.assert_close(cosine_distance(features, prototypes), expected, atol=1e-6, rtol=0)


def test_zero_row_is_at_distance_one_and_has_a_finite_gradient():
    features = torch.zeros(1, 3, requires_grad=True)
    distance = cosine_distance(features, torch.eye(3))
    assert distance.tolist() == [[1.0, 1.0, 1.0]]
    distance.sum().backward()
    assert features.grad.isfinite().all()


def test_class_contrast_is_the_mean_over_all_pairs():
    features, prototypes = torch.randn(5, 4), torch.randn(3, 4)
    total = 0.0
    for f in features.double():
        for p in prototypes.double():
            total += 1 - float(f @ p / (f.norm() * p.norm()))
    assert class_contrast(features, prototypes).item() == pytest.approx(total / 15, abs=1e-6)


def test_weights_belong_to_features():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # distances 0 and 2 to the first, 1 and 1 to the second
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert class_contrast(features, prototypes).item() == pytest.approx(1.0)
    weights = torch.tensor([0.5, 1.5])
    # (0.5 * 0 + 0.5 * 1 + 1.5 * 2 + 1.5 * 1) / 4
    assert class_contrast(features, prototypes, weights).item() == pytest.approx(1.25)


def test_divisor_present_counts_contributing_classes_and_all_counts_every_class():
    losses = [torch.tensor(0.5), torch.tensor(1.0)]
    assert average_over_classes(losses, 5, "present").item() == pytest.approx(0.75)
    assert average_over_classes(losses, 5, "all").item() == pytest.approx(0.3)
