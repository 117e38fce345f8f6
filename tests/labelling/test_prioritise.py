# SPDX-License-Identifier: Apache-2.0
"""Class embeddings of a few voxels, and the order of cases, compared with values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.labelling.prioritise import COLUMNS, Candidate, ClassEmbeddings, farthest_first, priority_rows
from scripts.prototypes.memory import PrototypeMemory
from scripts.training.inferer import FeatureInferer

# ---------------------------------------------------------------- embeddings of a case


class TwoLayers(nn.Module):
    """Features are the two channels of the image; the class is 1 if the first channel is larger, else 2."""

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


def test_the_distance_is_that_to_the_nearest_prototype_of_the_class(embeddings) -> None:
    embeddings(windows((2.0, 0.0), (4.0, 3.0), (0.0, 1.0)))
    # Class 1: (1, 0) is a prototype; (0.8, 0.6) has the cosines 0.8 and 1.4 / sqrt 2. Class 2 is on its prototype.
    expected = ((0 + 1 - 1.4 / 2**0.5) / 2 + 0) / 2
    assert embeddings.prototype_distance() == pytest.approx(expected, abs=1e-6)


def test_windows_are_accumulated_until_reset(embeddings) -> None:
    embeddings(windows((2.0, 0.0)))
    embeddings(windows((4.0, 3.0)))
    torch.testing.assert_close(embeddings.descriptor(), torch.tensor([1.8, 0.6, 0.0, 0.0]) / 3.6**0.5)
    embeddings.reset()
    assert embeddings.prototype_distance() is None
    assert embeddings.descriptor().tolist() == [0.0] * 4


def test_the_known_descriptor_is_the_mean_direction_of_prototypes(embeddings) -> None:
    x, y = (1 + 0.5**0.5) / 2, 0.5**0.5 / 2
    expected = torch.tensor([x, y]) / (x**2 + y**2) ** 0.5
    torch.testing.assert_close(embeddings.known_descriptor(), torch.cat([expected, torch.tensor([0.0, 1.0])]))


def test_a_call_uses_at_most_voxels_per_call_voxels_of_a_class(embeddings) -> None:
    embeddings.voxels_per_call = 3
    embeddings(windows(*[(1.0, 0.0)] * 10))
    assert embeddings.counts.tolist() == [0.0, 3.0, 0.0]


def test_logits_are_those_of_the_network(embeddings) -> None:
    assert torch.equal(embeddings(windows((2.0, 1.0))).flatten(), torch.tensor([0.0, 2.0, 1.0]))


# ---------------------------------------------------------------- farthest first


def test_each_point_is_the_farthest_from_known_and_chosen_points() -> None:
    points = torch.tensor([[1.0], [10.0], [9.0], [4.0]])
    order, distances = farthest_first(points, torch.tensor([[0.0]]))
    assert order == [1, 3, 0, 2]  # 10 from 0; then 4 (4 from 0), then 1 and 9 are 1 away, the first of them
    assert distances == pytest.approx([1.0, 10.0, 1.0, 4.0])


def test_equal_points_are_not_chosen_in_a_row() -> None:
    points = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
    order, distances = farthest_first(points, torch.zeros(1, 2))
    assert order == [0, 2, 1]
    assert distances == pytest.approx([5.0, 0.0, 3.0])


# ---------------------------------------------------------------- the table


def candidate(name: str, uncertainty: float, distance: float | None, place: float) -> Candidate:
    return Candidate(name, f"{name}.nii.gz", uncertainty, distance, torch.tensor([place]))


CASES = [candidate("a", 0.2, 0.1, 1.0), candidate("b", 0.9, 0.3, 4.0), candidate("c", 0.5, None, 9.0)]
KNOWN = torch.tensor([0.0])


def names(**options) -> list[str]:
    return [row[1] for row in priority_rows(CASES, KNOWN, **options)]


def test_priorities_by_three_criteria_are_averaged() -> None:
    table = [dict(zip(COLUMNS, row, strict=True)) for row in priority_rows(CASES, KNOWN)]
    # b: 1, 2, 2; c: 2, 1 (no structure found), 1; a: 3, 3, 3
    assert [row["case"] for row in table] == ["c", "b", "a"]
    assert [row["priority"] for row in table] == [1, 2, 3]
    columns = ("priority_uncertainty", "priority_prototype_distance", "priority_diversity")
    assert [tuple(row[column] for column in columns) for row in table] == [(2, 1, 1), (1, 2, 2), (3, 3, 3)]
    assert [row["diversity"] for row in table] == ["9.0000", "4.0000", "1.0000"]
    assert table[0]["prototype_distance"] == ""


def test_one_criterion_can_be_chosen() -> None:
    assert names(order_by=["uncertainty"]) == ["b", "c", "a"]
    assert names(order_by=["prototype_distance"]) == ["c", "b", "a"]


def test_no_cases_give_no_rows() -> None:
    assert priority_rows([], KNOWN) == []
