# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation by mirroring: one prediction from all mirrored views of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch

from scripts.errors import UserError


class MirroredNetwork:
    """The mean prediction over an image and its mirror images along each subset of some axes.

    MONAI's `TestTimeAugmentation` draws random transforms and holds every one of its whole volumes at once; mirror
    images are few and exact, and a window of each is enough.

    Args:
        network: windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`.
        axes: of D, H, W, each 0, 1 or 2; none gives the network's own prediction, three give 8 views.
        device: where the network is; windows are brought there and results back.

    Raises:
        UserError: for axes that are not different ones of 0, 1, 2.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        axes: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        axes = list(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else [axes]
        if len(set(axes)) != len(axes) or not all(axis in (0, 1, 2) for axis in axes):
            raise UserError(f"mirror_axes must be different axes out of 0, 1 and 2, e.g. [0, 1], got {axes}.")
        self.network, self.device = network, torch.device(device)
        subsets = chain.from_iterable(combinations(axes, size) for size in range(len(axes) + 1))
        self.views = [[axis + 2 for axis in subset] for subset in subsets]

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logarithms of the mean probabilities, `(B, K, D, H, W)`, float32, on the device of `windows`.

        The softmax of a weighted mean of log-probabilities is that of the same mean of logits, so windows stitch alike
        with and without mirror images.
        """
        images = windows.to(self.device)
        if len(self.views) == 1:
            return self.network(images).float().log_softmax(dim=1).to(windows.device)
        total = 0.0
        for flipped in self.views:
            logits = self.network(images.flip(flipped) if flipped else images)
            total = total + logits.float().softmax(dim=1).flip(flipped)
        # A probability of 0 would be a logarithm of minus infinity, which no other window could outweigh.
        smallest = torch.finfo(torch.float32).tiny
        return (total / len(self.views)).clamp(min=smallest).log().to(windows.device)
