# SPDX-License-Identifier: Apache-2.0
"""Dice losses of the semi-supervised literature that MONAI's `DiceLoss` does not offer."""

from __future__ import annotations

import torch


def linear_dice_loss(prediction: torch.Tensor, target: torch.Tensor, smooth: float = 1e-8) -> torch.Tensor:
    """`1 - (2 sum(p t) + s) / (sum p + sum t + s)` over all elements at once, cases and classes alike.

    With soft targets it is not 0 for identical inputs; it is lowest if both are certain.

    Args:
        prediction: values in [0, 1], any shape.
        target: values in [0, 1], the same shape.
        smooth: s; 1e-8 in SS-Net (Wu et al., MICCAI 2022). Two empty inputs then give 0.

    Returns:
        A scalar in [0, 1].
    """
    overlap = (prediction * target).sum()
    return 1.0 - (2.0 * overlap + smooth) / (prediction.sum() + target.sum() + smooth)


def squared_dice_loss(prediction: torch.Tensor, target: torch.Tensor, smooth: float = 1e-10) -> torch.Tensor:
    """Mean over classes of `1 - (2 sum(p t) + s) / (sum p^2 + sum t^2 + s)`, sums over cases and voxels.

    The form of Milletari et al. (3DV 2016), background included, as in SS-Net and BCP; 0 for identical inputs.

    Args:
        prediction: probabilities `(B, K, ...)`.
        target: one-hot classes or probabilities, the same shape.
        smooth: s; 1e-10 in the published codes.

    Returns:
        A scalar in [0, 1].
    """
    axes = [0, *range(2, prediction.ndim)]
    overlap = (prediction * target).sum(axes)
    size = prediction.square().sum(axes) + target.square().sum(axes)
    return (1.0 - (2.0 * overlap + smooth) / (size + smooth)).mean()


def masked_dice_loss(probabilities: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `1 - (2 sum(p t) + s) / (sum p + sum t + s)` over the foreground classes that the target holds.

    Sums run over cases and voxels where the mask is true; s is 1e-5.

    Args:
        probabilities: `(B, K, ...)`.
        target: one-hot classes, the same shape.
        mask: bool `(B, 1, ...)`.

    Returns:
        A scalar in [0, 1]; 0 with a zero gradient if the target holds no foreground class.
    """
    axes = [0, *range(2, probabilities.ndim)]
    probabilities = probabilities * mask
    target = target * mask
    overlap = (probabilities * target).sum(axes)[1:]
    size = (probabilities.sum(axes) + target.sum(axes))[1:]
    present = target.sum(axes)[1:] > 0
    losses = 1.0 - (2.0 * overlap + 1e-5) / (size + 1e-5)
    return (losses * present).sum() / present.sum().clamp(min=1)
