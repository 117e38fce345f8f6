# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a case by class, and their distance to prototypes, on voxels that can be counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.labelling.embeddings import ClassEmbeddings
from scripts.prototypes.memory import PrototypeMemory
from scripts.training.inferer import FeatureInferer


class TwoLayers(nn.Module):
    """Features are the image's two channels; class 1 where the first is larger, class 2 where the second is."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, image):
        features = self.features(image)
        return torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)


@pytest.fixture
def embeddings() -> ClassEmbeddings:
    memory = PrototypeMemory(3, 2, 4)
    memory.update({1: torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 2: torch.tensor([[0.0, 3.0]])})
    return ClassEmbeddings(TwoLayers(), FeatureInferer("features", divisor=1), None, memory)


def windows(*voxels: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(voxels).T.reshape(1, 2, len(voxels), 1, 1)


def test_the_distance_is_that_to_the_nearest_prototype_of_the_voxel_s_class(embeddings) -> None:
    embeddings(windows((2.0, 0.0), (4.0, 3.0), (0.0, 1.0)))
    # class 1: (1, 0) lies on a prototype; (0.8, 0.6) has the cosines 0.8 and 1.4 / sqrt 2; class 2 lies on its own
    expected = ((0 + 1 - 1.4 / 2**0.5) / 2 + 0) / 2
    assert embeddings.prototype_distance() == pytest.approx(expected, abs=1e-6)


def test_windows_add_up_and_reset_forgets(embeddings) -> None:
    embeddings(windows((2.0, 0.0)))
    embeddings(windows((4.0, 3.0)))
    torch.testing.assert_close(embeddings.descriptor(), torch.tensor([1.8, 0.6, 0.0, 0.0]) / 3.6**0.5)
    embeddings.reset()
    assert embeddings.prototype_distance() is None
    assert embeddings.descriptor().tolist() == [0.0] * 4


def test_what_is_known_is_the_mean_direction_of_prototypes(embeddings) -> None:
    x, y = (1 + 0.5**0.5) / 2, 0.5**0.5 / 2
    expected = torch.tensor([x, y]) / (x**2 + y**2) ** 0.5
    torch.testing.assert_close(embeddings.known_descriptor(), torch.cat([expected, torch.tensor([0.0, 1.0])]))


def test_of_a_class_no_more_voxels_than_asked_for_enter_a_call(embeddings) -> None:
    embeddings.rows_per_call = 3
    embeddings(windows(*[(1.0, 0.0)] * 10))
    assert embeddings.counts.tolist() == [0.0, 3.0, 0.0]


def test_logits_are_the_network_s(embeddings) -> None:
    assert torch.equal(embeddings(windows((2.0, 1.0))).flatten(), torch.tensor([0.0, 2.0, 1.0]))
