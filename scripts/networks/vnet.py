# SPDX-License-Identifier: Apache-2.0
"""The V-Net of the semi-supervised segmentation literature, built from MONAI's blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Dropout
from torch import nn

from scripts.networks.norms import INSTANCE_NORM

STAGE_LAYERS = (1, 2, 3, 3, 3)
"""Number of 3x3x3 convolutions per stage, from full resolution to the bottleneck; the same in encoder and decoder."""

RELU = ("relu", {"inplace": True})
"""In place, because neither the convolution nor the norm before it needs its output in the backward pass.

A hook that keeps the output of such a norm or convolution therefore sees it after the ReLU.
"""


def _norm_for(norm: str | tuple | None, base_filters: int) -> str | tuple | None:
    """Add the arguments that MONAI's norm factory needs: `affine`, and a number of groups that divides every width."""
    if not isinstance(norm, str):
        return norm
    if norm.lower() == "group":
        return "group", {"num_groups": math.gcd(8, base_filters)}
    if norm.lower() == "instance":
        return INSTANCE_NORM, {"affine": True}
    return norm


class _ConvStage(nn.Sequential):
    """A sequence of `layers` times (3x3x3 convolution, norm, ReLU); the first changes the number of channels."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, norm: str | tuple | None) -> None:
        super().__init__(
            *(
                Convolution(
                    3, in_channels if i == 0 else out_channels, out_channels, act=RELU, norm=norm, adn_ordering="NA"
                )
                for i in range(layers)
            )
        )


def _down(channels: int, norm: str | tuple | None) -> Convolution:
    """Halve each side with a strided 2x2x2 convolution and double the channels."""
    return Convolution(
        3, channels, 2 * channels, strides=2, kernel_size=2, padding=0, act=RELU, norm=norm, adn_ordering="NA"
    )


def _up(channels: int, norm: str | tuple | None) -> Convolution:
    """Double each side with a strided 2x2x2 transposed convolution and halve the channels."""
    return Convolution(
        3,
        channels,
        channels // 2,
        strides=2,
        kernel_size=2,
        padding=0,
        output_padding=0,
        is_transposed=True,
        act=RELU,
        norm=norm,
        adn_ordering="NA",
    )


class VNetEncoder(nn.Module):
    """Five stages from full resolution (`x1`) down to the bottleneck (`x5`, one sixteenth of each side)."""

    def __init__(self, in_channels: int, base_filters: int, norm: str | tuple | None, dropout_prob: float) -> None:
        super().__init__()
        f1, f2, f3, f4, f5 = (base_filters * 2**i for i in range(5))
        n1, n2, n3, n4, n5 = STAGE_LAYERS
        self.stage1 = _ConvStage(in_channels, f1, n1, norm)
        self.down1 = _down(f1, norm)
        self.stage2 = _ConvStage(f2, f2, n2, norm)
        self.down2 = _down(f2, norm)
        self.stage3 = _ConvStage(f3, f3, n3, norm)
        self.down3 = _down(f3, norm)
        self.stage4 = _ConvStage(f4, f4, n4, norm)
        self.down4 = _down(f4, norm)
        self.stage5 = _ConvStage(f5, f5, n5, norm)
        self.dropout = Dropout["dropout", 3](dropout_prob)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the outputs of the five stages, finest first; dropout is applied to the last one."""
        x1 = self.stage1(x)
        x2 = self.stage2(self.down1(x1))
        x3 = self.stage3(self.down2(x2))
        x4 = self.stage4(self.down3(x3))
        x5 = self.stage5(self.down4(x4))
        return x1, x2, x3, x4, self.dropout(x5)


class VNetDecoder(nn.Module):
    """Four stages from the bottleneck to full resolution; each adds the encoder's output at its scale."""

    def __init__(self, out_channels: int, base_filters: int, norm: str | tuple | None, dropout_prob: float) -> None:
        super().__init__()
        f1, f2, f3, f4, f5 = (base_filters * 2**i for i in range(5))
        n1, n2, n3, n4, _ = STAGE_LAYERS
        self.up4 = _up(f5, norm)
        self.stage4 = _ConvStage(f4, f4, n4, norm)
        self.up3 = _up(f4, norm)
        self.stage3 = _ConvStage(f3, f3, n3, norm)
        self.up2 = _up(f3, norm)
        self.stage2 = _ConvStage(f2, f2, n2, norm)
        self.up1 = _up(f2, norm)
        self.stage1 = _ConvStage(f1, f1, n1, norm)
        self.dropout = Dropout["dropout", 3](dropout_prob)
        self.output = Convolution(3, f1, out_channels, kernel_size=1, conv_only=True)

    def forward(
        self, x1: torch.Tensor, x2: torch.Tensor, x3: torch.Tensor, x4: torch.Tensor, x5: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits at full resolution."""
        y4 = self.stage4(self.up4(x5) + x4)
        y3 = self.stage3(self.up3(y4) + x3)
        y2 = self.stage2(self.up2(y3) + x2)
        y1 = self.stage1(self.up1(y2) + x1)
        return self.output(self.dropout(y1))


class VNet(nn.Module):
    """V-Net with additive skips: `(B, in_channels, D, H, W)` to logits `(B, out_channels, D, H, W)`.

    Milletari et al., "V-Net", 3DV 2016, in the form shared by UA-MT (MICCAI 2019), SS-Net (MICCAI 2022) and their
    successors: 16-32-64-128-256 filters, 1/2/3/3/3 convolutions per stage, strided 2x2x2 convolutions down, transposed
    convolutions up, no residual connection inside a stage. Parameters have the same order as in the published code of
    these methods, see `load_reference_backbone`.

    Prototype methods use the output of `decoder.stage1` as features (`base_filters` channels at full resolution), or
    that of `decoder.dropout` to include dropout.

    Args:
        in_channels: image channels, at least 1.
        out_channels: classes, background included, at least 1.
        base_filters: filters of the first stage; each further stage doubles them.
        norm: `batch`, `group`, `instance`, `None`, or any argument of MONAI's norm factory, e.g.
            `("group", {"num_groups": 4})`.
        dropout_prob: probability in [0, 1) of dropping a channel, after the bottleneck and before the output layer.

    Raises:
        ValueError: at construction for a count below 1 or a probability outside [0, 1); in `forward` if the input does
            not have five axes or a side is not a multiple of 16.

    Example:
        >>> import torch
        >>> network = VNet(in_channels=1, out_channels=3, base_filters=4)
        >>> network(torch.zeros(2, 1, 32, 32, 16)).shape
        torch.Size([2, 3, 32, 32, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        base_filters: int = 16,
        norm: str | tuple | None = "batch",
        dropout_prob: float = 0.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments  # recorded in weights files (scripts/data/weights.py)
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("base_filters", base_filters),
        ):
            if value < 1:
                raise ValueError(f"VNet: {name} must be at least 1, got {value}.")
        if not 0.0 <= dropout_prob < 1.0:
            raise ValueError(f"VNet: dropout_prob must be in [0, 1), got {dropout_prob}.")
        norm = _norm_for(norm, base_filters)
        self.encoder = VNetEncoder(in_channels, base_filters, norm, dropout_prob)
        self.decoder = VNetDecoder(out_channels, base_filters, norm, dropout_prob)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image batch to logits of the same spatial shape."""
        if x.dim() != 5:
            raise ValueError(f"VNet expects an input of shape (B, C, D, H, W), got {x.dim()} axes.")
        for side in x.shape[2:]:
            if side % 16 != 0:
                raise ValueError(
                    f"VNet halves each side four times, so each side must be a multiple of 16, got {side}. "
                    "Pad the volume first, as SlidingWindowInferer and FeatureInferer do."
                )
        x1, x2, x3, x4, x5 = self.encoder(x)
        return self.decoder(x1, x2, x3, x4, x5)


BACKBONE_PREFIXES = ("encoder.", "decoder.")


def load_reference_backbone(network: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Copy the encoder and decoder weights of a published state dict into `VNet`, entry by entry in order.

    Both state dicts list the same layers in the same order under different names. Heads and selectors in `state` are
    skipped.

    Args:
        network: a `VNet` with batch norm and the widths, channels and classes of `state`.
        state: the published state dict, in its original order.

    Returns:
        `network` with the loaded weights.

    Raises:
        ValueError: if the number of entries differs, or if an entry has another shape or kind.
    """
    theirs = [(key, value) for key, value in state.items() if key.startswith(BACKBONE_PREFIXES)]
    ours = network.state_dict()
    if len(theirs) != len(ours):
        raise ValueError(f"The state dict has {len(theirs)} encoder and decoder entries, the network {len(ours)}.")
    for (their_key, value), (our_key, own) in zip(theirs, ours.items(), strict=True):
        if value.shape != own.shape:
            raise ValueError(f"{their_key} has shape {tuple(value.shape)}, but {our_key} has {tuple(own.shape)}.")
        if their_key.rpartition(".")[2] != our_key.rpartition(".")[2]:
            raise ValueError(f"The state dict has {their_key} where {our_key} is expected: its order is different.")
        ours[our_key] = value
    network.load_state_dict(ours)
    return network
