# SPDX-License-Identifier: Apache-2.0
"""MONAI's sliding window against the recorded inference of the semi-supervised codes."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch.nn.functional import conv3d

from tests.golden.golden_files import Golden, found


@pytest.mark.parametrize("path", found("sliding_window_*.npz"))
def test_recorded_scores_and_labels_are_reproduced_by_uniform_windows(path):
    golden = Golden(path)
    patch = golden["patch_size"].tolist()
    strides = [golden["stride_xy"], golden["stride_xy"], golden["stride_z"]]
    # MONAI cuts patch * (1 - overlap) to a whole stride: half a voxel keeps rounding from losing one.
    overlap = [max(0.0, 1 - (stride + 0.5) / side) for stride, side in zip(strides, patch, strict=True)]
    windows = SlidingWindowInferer(patch, sw_batch_size=2, overlap=overlap, mode="constant")

    def network(image):
        return conv3d(image, golden["conv_weight"], golden["conv_bias"], padding=1).softmax(1)

    scores = windows(golden["image"][None, None], network)[0]
    # In the reference every channel holds the probability of class 1, and a voxel is 1 where that is above one half.
    golden.check(scores[1].expand_as(golden["out.score_map"]), "out.score_map", atol=1e-5, quantity="scores")
    assert torch.equal((scores[1] > 0.5).long(), golden["out.label_map"])


@pytest.mark.parametrize(("side", "first"), [(2, 1), (3, 1), (4, 0), (5, 0)])
def test_a_short_axis_is_padded_by_the_smaller_half_in_front(side, first):
    """Not in the recorded files: the reference pads floor(missing / 2) in front and the rest behind."""

    def place(image):
        return torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand_as(image).clone()

    output = SlidingWindowInferer((5, 4, 4))(torch.zeros(1, 1, side, 4, 4), place)
    assert output[0, 0, :, 0, 0].tolist() == [float(first + i) for i in range(side)]
