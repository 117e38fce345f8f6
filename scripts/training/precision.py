# SPDX-License-Identifier: Apache-2.0
"""Floating-point format and memory layout of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from scripts.errors import UserError


def autocast_dtype(precision: str, device: str | torch.device) -> torch.dtype | None:
    """Resolve `auto`, `fp32` or `bf16` to autocast's type, or `None` for fp32.

    `auto` selects bf16 if the hardware supports it, else fp32.

    Args:
        precision: `auto`, `fp32` or `bf16`.
        device: the run's device.

    Raises:
        UserError: for an unknown `precision`, or bf16 on a device without it.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision must be auto, fp32 or bf16, got '{precision}'.")
    if precision == "fp32":
        return None
    device = torch.device(device)
    able = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    if able:
        return torch.bfloat16
    if precision == "bf16":
        raise UserError(f"This {device.type} device does not support bf16: use --precision fp32 or auto.")
    return None


def _cpu_has_bf16() -> bool:
    """Whether the CPU supports bf16 in hardware; emulated bf16 would be slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def mixed_precision(network: nn.Module, device_type: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Context that applies autocast to passes of `network`, except for convolutions that torch computes wrongly.

    On a CPU, torch 2.13 (oneDNN) returns wrong bf16 weight gradients, even NaN, for a 3D convolution whose kernel is
    longer than the input along the first spatial axis, such as 3x3x3 over 2x4x4. Such layers compute in fp32.
    A test in tests/training/test_precision.py will fail once a release of torch fixes this bug.

    Args:
        network: its layers have hooks inside this context only.
        device_type: `cpu` or `cuda`.
        dtype: autocast's type; `None`: no autocast.
    """
    if dtype is None:
        yield
        return
    handles = []
    with torch.autocast(device_type, dtype=dtype):
        if device_type == "cpu":
            for layer in network.modules():
                if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1:
                    handles.append(layer.register_forward_pre_hook(_enter_fp32))
                    handles.append(layer.register_forward_hook(_leave_fp32, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _kernel_exceeds_input(layer: nn.Conv3d, inputs: torch.Tensor) -> bool:
    return layer.kernel_size[0] > inputs.shape[2]


def _enter_fp32(layer: nn.Conv3d, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    if not _kernel_exceeds_input(layer, args[0]):
        return None
    torch.set_autocast_enabled("cpu", False)
    return (args[0].float(),)


def _leave_fp32(layer: nn.Conv3d, args: tuple[torch.Tensor], _output: Any) -> None:
    if _kernel_exceeds_input(layer, args[0]):
        torch.set_autocast_enabled("cpu", True)


def place(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a network to a device; on a CPU, also change the weights of its 3D convolutions to channels-last layout.

    The layout affects speed and rounding only. `python -m scripts.experiments.load patch-cost` compares both layouts.
    Activations take the layout of the weights.

    Args:
        network: changed in place.
        device: the target device.

    Returns:
        `network`.
    """
    network.to(device)
    if torch.device(device).type == "cpu":
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return network
