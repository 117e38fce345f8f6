# SPDX-License-Identifier: Apache-2.0
"""A residual U-Net whose stages work at half resolution and below, built from MONAI's blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.utils import ensure_tuple_rep
from torch import nn

from scripts.networks.norms import INSTANCE_NORM

ACTIVATION = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
GROUP_CHANNELS = 8


def _norm_for(norm: str | tuple, channels: int) -> str | tuple:
    """Add the arguments that a norm needs for a layer of `channels` channels."""
    if norm == "group":
        return "group", {"num_groups": max(1, channels // GROUP_CHANNELS), "num_channels": channels}
    return (INSTANCE_NORM, {"affine": True}) if norm == "instance" else norm


class ResidualUNet(nn.Module):
    """Residual U-Net: `(B, in_channels, D, H, W)` to logits `(B, out_channels, D, H, W)`.

    A strided stem halves the resolution, so that the wide stages are cheap. Each encoder stage has one or more residual
    blocks (He et al., CVPR 2016). Each decoder stage has one convolution, and concatenates the encoder's output at the
    same scale (Ronneberger et al., MICCAI 2015). A light head upsamples the finest decoder stage to full resolution,
    concatenates the image and computes the logits. With `stem_stride=1` there is no such head.

    Prototype methods and deep supervision name decoder stages as layers: `decoder.0` is the coarsest, and
    `decoder.<len(widths) - 2>` the finest, with `widths[0]` channels at the stem's resolution.

    Args:
        in_channels: image channels, at least 1.
        out_channels: classes, background included, at least 1.
        widths: channels of the encoder's stages, finest first; at least 2.
        blocks: residual blocks of each stage.
        stem_stride: stride of the first convolution, one number or one per axis; 2 halves the resolution.
        strides: stride of each stage after the first, each one number or one per axis; `None`: 2 everywhere. An axis
            with large voxels needs fewer halvings: `[[2, 2, 1], 2, 2]`.
        norm: `group` (8 channels per group), `batch`, `instance`, or any argument of MONAI's norm factory.
        head_channels: channels of the full-resolution head.
        dropout_prob: probability in [0, 1) of dropping a channel after the coarsest stage.

    Raises:
        ValueError: at construction if `widths`, `blocks` and `strides` do not match; in `forward` if a side is not a
            multiple of the product of the strides along its axis (`divisors`).

    Example:
        >>> import torch
        >>> network = ResidualUNet(in_channels=1, out_channels=3, widths=(8, 16, 16), blocks=(1, 1, 1))
        >>> network.divisors
        (8, 8, 8)
        >>> network(torch.zeros(2, 1, 32, 16, 16)).shape
        torch.Size([2, 3, 32, 16, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        widths: Sequence[int] = (24, 48, 96, 128),
        blocks: Sequence[int] = (1, 1, 2, 2),
        stem_stride: int | Sequence[int] = 2,
        strides: Sequence[int | Sequence[int]] | None = None,
        norm: str | tuple = "group",
        head_channels: int = 8,
        dropout_prob: float = 0.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments  # recorded in weights files (scripts/data/weights.py)
        if len(widths) < 2 or len(blocks) != len(widths):
            raise ValueError(
                f"ResidualUNet: blocks must have as many entries as widths, at least 2: {blocks}, {widths}."
            )
        strides = [2] * (len(widths) - 1) if strides is None else strides
        if len(strides) != len(widths) - 1:
            raise ValueError(f"ResidualUNet: strides must have one entry less than widths: {strides}, {widths}.")
        steps = [ensure_tuple_rep(stride, 3) for stride in strides]
        stem = ensure_tuple_rep(stem_stride, 3)
        self.divisors = tuple(math.prod(axis) for axis in zip(stem, *steps, strict=True))

        self.stem = _convolution(in_channels, widths[0], norm, stem)
        self.encoder = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = (widths[max(0, stage - 1)], steps[stage - 1] if stage > 0 else (1, 1, 1))
            self.encoder.append(
                nn.Sequential(
                    *(
                        UnetResBlock(
                            3, first[0] if i == 0 else width, width, 3, first[1] if i == 0 else 1,
                            _norm_for(norm, width), ACTIVATION,
                        )
                        for i in range(count)
                    )
                )
            )  # fmt: skip
        self.dropout = nn.Dropout3d(dropout_prob)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(range(len(widths) - 1)):
            self.up.append(nn.ConvTranspose3d(widths[stage + 1], widths[stage], steps[stage], steps[stage]))
            self.decoder.append(_convolution(2 * widths[stage], widths[stage], norm))
        self.head: nn.Module | None = None
        if max(stem) > 1:
            self.head_up = nn.ConvTranspose3d(widths[0], head_channels, stem, stem)
            self.head = _convolution(head_channels + in_channels, head_channels, norm)
        self.output = nn.Conv3d(widths[0] if self.head is None else head_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image batch to logits of the same spatial shape."""
        for axis, divisor in enumerate(self.divisors):
            if x.shape[axis + 2] % divisor != 0:
                raise ValueError(f"ResidualUNet: side {axis} must be a multiple of {divisor}, got {x.shape[axis + 2]}.")
        y = self.stem(x)
        skips = []
        for stage in self.encoder:
            y = stage(y)
            skips.append(y)
        y = self.dropout(y)
        for i, (up, convolution) in enumerate(zip(self.up, self.decoder)):  # noqa: B905 (TorchScript has no strict)
            y = convolution(torch.cat([up(y), skips[len(skips) - 2 - i]], dim=1))
        if self.head is not None:
            y = self.head(torch.cat([self.head_up(y), x], dim=1))
        return self.output(y)


def _convolution(
    in_channels: int, out_channels: int, norm: str | tuple, stride: Sequence[int] = (1, 1, 1)
) -> Convolution:
    return Convolution(
        3, in_channels, out_channels, strides=stride, bias=False, act=ACTIVATION, norm=_norm_for(norm, out_channels),
        adn_ordering="NA",
    )  # fmt: skip
