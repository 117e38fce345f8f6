# SPDX-License-Identifier: Apache-2.0
"""Boxes, by counting voxels."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.mixing import random_box


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
