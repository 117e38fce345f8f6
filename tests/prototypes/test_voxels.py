# SPDX-License-Identifier: Apache-2.0
"""Embeddings, grids, pseudo-labels and sampling on tiny volumes."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.prototypes.voxels import (
    NO_CLASS,
    check_labels,
    confident_classes,
    labels_on_grid,
    pseudo_labels,
    sample_per_class,
    voxel_embeddings,
)


def test_no_class_is_no_label_value():
    assert NO_CLASS < 0


def test_same_grid_leaves_labels_alone():
    labels = torch.arange(24).reshape(1, 2, 3, 4)
    assert torch.equal(labels_on_grid(labels, (2, 3, 4)), labels)


def test_coarser_grid_takes_the_voxel_at_the_centre_of_each_cell():
    labels = torch.arange(2 * 4 * 15 * 3).reshape(2, 4, 15, 3)
    # Cells of 2, 3 and 1 voxels: the centre of [0, 2) lies in voxel 1, that of [0, 3) in voxel 1.
    expected = torch.stack([labels[b][[1, 3]][:, [1, 4, 7, 10, 13]] for b in range(2)])
    coarse = labels_on_grid(labels, (2, 5, 3))
    assert torch.equal(coarse, expected)
    assert coarse.dtype == torch.int64


def test_no_class_survives_a_change_of_grid_and_classes_are_never_mixed():
    labels = torch.tensor([0, 0, 3, 3, -1, -1]).reshape(1, 1, 1, 6)
    assert labels_on_grid(labels, (1, 1, 3)).flatten().tolist() == [0, 3, -1]
    assert set(labels_on_grid(labels, (1, 1, 4)).flatten().tolist()) <= {0, 3, -1}


@pytest.mark.parametrize(
    ("side", "stride", "expected"),
    [
        (20, 8, [4, 12, 19]),  # the last cell, of voxels 16 to 23, has its centre beyond the image
        (30, 8, [4, 12, 20, 28]),
        (27, 2, [*range(1, 27, 2), 26]),
        (19, 16, [8, 18]),
        (24, 8, [4, 12, 20]),
        (5, 8, [4]),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_are_those_at_the_centres_of_coarse_cells(side, stride, expected, axis):
    """The value of a voxel is its index along the axis; a padded patch keeps ceil(side / stride) cells."""
    shape = [3, 3, 3]
    shape[axis] = side
    labels = torch.arange(side).reshape([-1 if a == axis else 1 for a in range(3)]).expand(shape)[None]
    grid = [3, 3, 3]
    grid[axis] = -(-side // stride)
    found = labels_on_grid(labels, grid).movedim(axis + 1, -1)
    assert found[0, 0, 0].tolist() == expected
    assert (found == found[:, :1, :1]).all()


def test_cells_of_another_integer_stride_have_their_centres_too():
    assert labels_on_grid(torch.arange(21).reshape(1, 1, 1, 21), (1, 1, 7)).flatten().tolist() == list(range(1, 21, 3))


def logits_of(*probabilities):
    """Logits `(1, K, 1, 1, N)` whose softmax is `probabilities`."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T.reshape(1, len(probabilities[0]), 1, 1, -1)


def test_pseudo_label_below_the_threshold_has_no_class():
    labels, confidence = pseudo_labels(logits_of([0.1, 0.9], [0.7, 0.3], [0.05, 0.95]), 0.8)
    assert labels.flatten().tolist() == [1, NO_CLASS, 1]
    assert confidence.flatten().tolist() == pytest.approx([0.9, 0.7, 0.95])
    assert labels.dtype == torch.int64


def test_probability_equal_to_the_threshold_counts():
    labels, _ = pseudo_labels(torch.zeros(1, 2, 1, 1, 1), 0.5)
    assert labels.item() == 0


def test_threshold_zero_keeps_every_voxel():
    labels, _ = pseudo_labels(logits_of([0.4, 0.3, 0.3], [0.2, 0.3, 0.5]), 0.0)
    assert labels.flatten().tolist() == [0, 2]


def test_softmax_of_half_precision_logits_is_taken_in_single_precision():
    _, confidence = pseudo_labels(torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1).bfloat16(), 0.0)
    assert confidence.dtype == torch.float32
    assert confidence.item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)


def test_embeddings_have_the_order_of_flattened_labels():
    features, labels = torch.randn(2, 5, 2, 3, 4), torch.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    rows = voxel_embeddings(features)
    for b in range(2):
        for x in range(2):
            for y in range(3):
                for z in range(4):
                    assert torch.equal(rows[labels[b, x, y, z]], features[b, :, x, y, z])


def test_without_limit_all_classified_voxels_are_taken():
    assert sample_per_class(torch.tensor([0, -1, 2, 2, -1]), 3, None).tolist() == [0, 2, 3]


def test_limit_holds_for_each_class_and_smaller_classes_are_complete():
    labels = torch.tensor([1] * 10 + [-1] * 5 + [2] * 2 + [0] * 20)
    chosen = sample_per_class(labels, 3, 4)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert labels[chosen].bincount().tolist() == [4, 4, 2]


def test_every_voxel_of_a_class_can_be_drawn():
    torch.manual_seed(0)
    labels = torch.zeros(6, dtype=torch.int64)
    drawn = [tuple(sample_per_class(labels, 1, 2).tolist()) for _ in range(100)]
    assert len(set(drawn)) == 15  # all pairs of six


def test_no_voxel_to_draw_from_gives_no_index():
    for limit in (None, 3):
        assert sample_per_class(torch.full((4,), -1), 2, limit).tolist() == []
        assert sample_per_class(torch.empty(0, dtype=torch.int64), 2, limit).tolist() == []


def test_a_voxel_whose_probabilities_hold_a_nan_has_no_class():
    labels, _ = pseudo_labels(torch.tensor([[math.nan, 5.0], [9.0, 1.0]]), 0.0)
    assert labels.tolist() == [NO_CLASS, 0]


def test_probabilities_are_taken_as_they_are():
    classes, confidence = confident_classes(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), 0.7)
    assert classes.tolist() == [1, NO_CLASS]
    assert confidence.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("labels", [[0, 2, 2], [NO_CLASS, 1], []])
def test_labels_in_range_and_no_class_pass(labels):
    check_labels(torch.tensor(labels), 3)


@pytest.mark.parametrize(("labels", "found"), [([0, 3], "0 to 3"), ([-2, 1], "-2 to 1")])
def test_labels_out_of_range_are_refused_with_the_range_found(labels, found):
    with pytest.raises(ValueError, match=rf"\[0, 3\).* {found}"):
        check_labels(torch.tensor([labels]), 3)
