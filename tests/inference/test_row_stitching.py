# SPDX-License-Identifier: Apache-2.0
"""Rows of windows give what MONAI gives for the whole volume."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from scripts.inference.streaming import longest_axis, stitched_rows


def network(windows: torch.Tensor) -> torch.Tensor:
    """Two channels that depend on where in the window a voxel lies, so that blending matters."""
    places = torch.arange(windows[0, 0].numel(), dtype=torch.float32).reshape(windows.shape[2:])
    return torch.cat([windows * places, places.expand_as(windows)], dim=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, (0.6, 0.1, 0.5)])
@pytest.mark.parametrize("shape", [(21, 13, 10), (8, 15, 5), (6, 7, 4), (8, 8, 17)])
def test_blocks_together_are_the_volume_that_monai_stitches(shape, overlap, mode, axis) -> None:
    inferer = SlidingWindowInferer((8, 8, 6), sw_batch_size=3, overlap=overlap, mode=mode)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    blocks = list(stitched_rows(image, inferer, network, axis))
    assert [start for start, _ in blocks] == [
        sum(block.shape[axis + 1] for _, block in blocks[:index]) for index in range(len(blocks))
    ]
    torch.testing.assert_close(
        torch.cat([block for _, block in blocks], dim=axis + 1), inferer(image[None], network)[0], rtol=1e-5, atol=1e-4
    )


def test_no_more_than_a_row_is_given_to_the_inferer() -> None:
    seen = []

    class Spy(SlidingWindowInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            seen.append(tuple(inputs.shape[2:]))
            return super().__call__(inputs, network, *args, **kwargs)

    list(stitched_rows(torch.zeros(1, 9, 10, 40), Spy((8, 8, 8), overlap=0.5), network, axis=2))
    assert seen == [(9, 10, 8)] * 9  # 0, 4, ..., 32


def test_the_axis_with_most_windows_is_the_one_to_go_along() -> None:
    assert longest_axis((512, 512, 600), (128, 128, 96)) == 2
    assert longest_axis((300, 64, 60), (128, 128, 16)) == 2
    assert longest_axis((300, 64, 16), (128, 128, 16)) == 0
