# SPDX-License-Identifier: Apache-2.0
"""Boxes and pasting, by counting voxels."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.mixing import half_of_the_classes, paste, random_box


def extents(box):
    """First and last voxel of the box along each axis."""
    where = box.nonzero()
    return list(zip(where.min(dim=0).values.tolist(), where.max(dim=0).values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("shape", "fraction", "sides"),
    [
        ((9, 6, 3), 2 / 3, [6, 4, 2]),
        ((112, 112, 80), 2 / 3, [74, 74, 53]),  # 74.67 and 53.33, cut
        ((8, 5, 1), 0.5, [4, 2, 1]),
        ((8, 5, 1), 0.01, [1, 1, 1]),
    ],
)
def test_box_is_solid_and_has_the_fraction_of_each_side(shape, fraction, sides):
    box = random_box(shape, fraction)
    assert tuple(box.shape) == shape
    assert [last - first + 1 for first, last in extents(box)] == sides
    assert int(box.sum()) == sides[0] * sides[1] * sides[2]


def test_box_reaches_every_place_along_every_axis_by_itself():
    torch.manual_seed(0)
    places = {tuple(first for first, _ in extents(random_box((3, 4, 5), 0.5))) for _ in range(400)}
    assert places == {(d, h, w) for d in range(3) for h in range(3) for w in range(4)}  # sides 1, 2, 2


def test_box_follows_torchs_generator():
    torch.manual_seed(3)
    first, second = random_box((30, 30, 30), 0.5), random_box((30, 30, 30), 0.5)
    torch.manual_seed(3)
    assert torch.equal(random_box((30, 30, 30), 0.5), first) and not torch.equal(first, second)


def test_what_is_pasted_is_inside_and_the_rest_is_kept():
    box = torch.zeros(1, 2, 3, dtype=torch.bool)
    box[0, 1, 1:] = True
    patch, into = torch.arange(6.0).reshape(1, 1, 1, 2, 3), torch.arange(10.0, 16.0).reshape(1, 1, 1, 2, 3)
    assert paste(patch, into, box).flatten().tolist() == [10, 11, 12, 13, 4, 5]
    assert paste(into, patch, box).flatten().tolist() == [0, 1, 2, 3, 14, 15]


def test_labels_are_pasted_like_images():
    box = torch.tensor([True, False, True]).reshape(1, 1, 3)
    pasted = paste(torch.tensor([[[[1, 1, 1]]], [[[2, 2, 2]]]]), torch.zeros(2, 1, 1, 3, dtype=torch.int64), box)
    assert pasted[:, 0, 0].tolist() == [[1, 0, 1], [2, 0, 2]] and pasted.dtype == torch.int64


def test_half_of_the_classes_is_rounded_up_and_never_holds_background():
    labels = torch.tensor([0, 1, 2, 5, 5, 0]).reshape(1, 1, 6)
    drawn = set()
    for seed in range(30):
        torch.manual_seed(seed)
        where = half_of_the_classes(labels)
        assert where.shape == labels.shape
        drawn.add(tuple(sorted(set(labels[where].tolist()))))
    assert drawn == {(1, 2), (1, 5), (2, 5)}


def test_half_of_no_class_is_nowhere():
    assert not half_of_the_classes(torch.zeros(1, 2, 3, dtype=torch.int64)).any()
