# SPDX-License-Identifier: Apache-2.0
"""Say before the first step that a patch does not fit, instead of being killed in the middle of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import psutil
import torch
from torch import nn

from scripts.errors import BundleError


def activation_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of all layer outputs of one forward pass in float32, counted on tensors that hold no data.

    Args:
        network: image to logits.
        shape: input `(B, C, D, H, W)`.
    """
    ghost = copy.deepcopy(network).to("meta")
    total = 0

    def count(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * 4 if isinstance(output, torch.Tensor) else 0

    for module in ghost.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    return total


def check_memory(
    network: nn.Module,
    in_channels: int,
    roi_size: Sequence[int],
    batch_size: int,
    divisor: int,
    device: str | torch.device,
) -> None:
    """Compare what a training step needs with what the device has left, before data is loaded.

    The need is a lower bound: every layer's output once, weights, gradients, two moments of Adam and the teacher.

    Args:
        network: what is trained.
        in_channels: image channels.
        roi_size: patch in voxels.
        batch_size: patches a step, both streams together.
        divisor: sides are padded to multiples of it.
        device: where the run computes.

    Raises:
        BundleError: if a step cannot fit, with the numbers and what to lower; or if the network refuses such patches.
    """
    shape = (batch_size, in_channels, *(math.ceil(side / divisor) * divisor for side in roi_size))
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    try:
        need = activation_bytes(network, shape) + 5 * weights
    except ValueError as error:  # torch's norms refuse to normalise a single value, as the deepest layer may hold
        raise BundleError(
            f"The network cannot train on patches of {'x'.join(map(str, roi_size))} voxels (roi_size): "
            f"{str(error).splitlines()[0].rstrip('.')}. Raise --roi_size."
        ) from error
    device = torch.device(device)
    supply = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need > supply:
        raise BundleError(
            f"A step of {batch_size} patches of {'x'.join(map(str, roi_size))} voxels needs at least "
            f"{need / 2**30:.1f} GiB, but {device} has {supply / 2**30:.1f} GiB left. Lower --roi_size, or "
            "--batch_labelled and --batch_unlabelled."
        )
