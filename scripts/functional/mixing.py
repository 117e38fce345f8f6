# SPDX-License-Identifier: Apache-2.0
"""Making one case of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def random_box(shape: Sequence[int], fraction: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """A box that covers `fraction` of each side, anywhere in the volume, every place as likely.

    Its sides are `fraction` of the volume's, cut to whole voxels, at least 1. Where it lies comes from torch's
    generator.

    Args:
        shape: D, H, W.
        fraction: in (0, 1).
        device: of the result; the draw is made on the CPU, so that a run on any device draws the same box.

    Returns:
        bool `(D, H, W)`, true inside the box.
    """
    box = torch.zeros(tuple(shape), dtype=torch.bool, device=device)
    inside = box
    for axis, side in enumerate(shape):
        length = max(1, int(side * fraction))
        inside = inside.narrow(axis, int(torch.randint(side - length + 1, ())), length)
    inside.fill_(True)
    return box


def paste(patch: torch.Tensor, into: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """`patch` where `where` is true, `into` elsewhere; images `(B, C, D, H, W)` or labels `(B, D, H, W)` alike.

    Args:
        patch: what is pasted.
        into: what it is pasted into, of the same shape.
        where: bool, `(D, H, W)` or any shape that broadcasts to theirs.
    """
    return torch.where(where, patch, into)


def half_of_the_classes(labels: torch.Tensor) -> torch.Tensor:
    """Where a case has one of a random half of its classes, rounded up, background not among them.

    Drawn from torch's generator, on the CPU.

    Args:
        labels: classes of one case, `(D, H, W)`, from 0.

    Returns:
        bool `(D, H, W)`; all false where the case is background alone.
    """
    present = labels.unique()
    present = present[present > 0]
    order = torch.randperm(len(present))[: (len(present) + 1) // 2].to(labels.device)
    return torch.isin(labels, present[order])
