# SPDX-License-Identifier: Apache-2.0
"""Confidence and uncertainty, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from scripts.inference.segmenter import ClassSums, normalised_entropy

# four voxels, three classes
PROBABILITIES = torch.tensor([[0.9, 0.2, 0.1, 0.5], [0.1, 0.8, 0.6, 0.5], [0.0, 0.0, 0.3, 0.0]])
CLASSES = torch.tensor([0, 1, 1, 0])


def sums(*parts: slice) -> ClassSums:
    result = ClassSums(3)
    for part in parts:
        result.add(PROBABILITIES[:, part], CLASSES[part])
    return result


def test_confidence_is_the_dice_of_a_prediction_with_its_probabilities() -> None:
    # class 0: 2 (0.9 + 0.5) / (2 + 1.7); class 1: 2 (0.8 + 0.6) / (2 + 2.0); class 2 has no voxel
    assert sums(slice(None)).confidences() == pytest.approx([2.8 / 3.7, 0.7, 0.0], abs=1e-6)


def test_a_case_s_confidence_is_the_mean_over_structures_that_were_found() -> None:
    assert sums(slice(None)).confidence() == pytest.approx(0.7, abs=1e-6)


def test_a_prediction_of_background_alone_has_no_confidence() -> None:
    result = ClassSums(2)
    result.add(torch.tensor([[0.99, 0.98], [0.01, 0.02]]), torch.tensor([0, 0]))
    assert result.confidence() == 0.0


def test_parts_of_a_volume_add_up() -> None:
    assert sums(slice(0, 1), slice(1, 4)).confidences() == sums(slice(None)).confidences()


def test_a_certain_voxel_has_no_entropy_and_a_torn_one_all() -> None:
    voxels = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])
    assert normalised_entropy(voxels).tolist() == pytest.approx([0.0, 1.0, 0.5])
