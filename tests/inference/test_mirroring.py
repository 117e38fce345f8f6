# SPDX-License-Identifier: Apache-2.0
"""Mirrored views: each is turned back, and probabilities are averaged."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import UserError
from scripts.inference.mirroring import MirroredNetwork

IMAGE = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def pointwise(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([windows, -2 * windows, windows.square()], dim=1)


def leaning(windows: torch.Tensor) -> torch.Tensor:
    """Class 1 grows along D: a mirrored view says the opposite."""
    ramp = torch.arange(3.0).reshape(3, 1, 1).expand(windows.shape)
    return torch.cat([torch.zeros_like(windows), ramp], dim=1)


@pytest.mark.parametrize("axes", [[], [0], [1, 2], [0, 1, 2]])
def test_a_network_that_looks_at_voxels_alone_is_not_changed(axes) -> None:
    got = MirroredNetwork(pointwise, axes)(IMAGE)
    torch.testing.assert_close(got.softmax(1), pointwise(IMAGE).softmax(1))


def test_the_mean_is_one_of_probabilities() -> None:
    rising = leaning(IMAGE).softmax(1)
    got = MirroredNetwork(leaning, [0])(IMAGE).softmax(1)
    torch.testing.assert_close(got, (rising + rising.flip(2)) / 2)
    torch.testing.assert_close(got[0, 1, :, 0, 0], torch.tensor([0.6904, 0.7311, 0.6904]), atol=1e-4, rtol=0)


def test_three_axes_are_eight_views() -> None:
    seen = []
    MirroredNetwork(lambda windows: seen.append(windows) or pointwise(windows), [0, 1, 2])(IMAGE)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8


def test_a_probability_of_zero_stays_finite() -> None:
    sure = MirroredNetwork(lambda w: torch.cat([w * 0 + 1e4, w * 0 - 1e4], dim=1), [0])(IMAGE)
    assert sure.isfinite().all()
    assert sure.softmax(1)[:, 1].max() < 1e-30


@pytest.mark.parametrize("axes", [[3], [0, 0], ["x"], [-1], "012"])
def test_axes_that_are_none_are_refused(axes) -> None:
    with pytest.raises(UserError, match=r"mirror_axes must be different axes"):
        MirroredNetwork(pointwise, axes)
