# SPDX-License-Identifier: Apache-2.0
"""The number format of a run: fp32 or bf16."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from scripts.errors import UserError

logger = logging.getLogger("precision")

SAFE_BOTTLENECK_VOXELS = 48
"""On CPUs, bf16 weight gradients of wide convolutions over smaller grids were NaN (2x3x2 failed, 4x4x3 worked)."""


def autocast_dtype(
    precision: str, device: str | torch.device, roi_size: Sequence[int], divisor: int = 16
) -> torch.dtype | None:
    """Resolve `auto`, `fp32` or `bf16` to autocast's type, or `None` for fp32.

    `auto` selects bf16 if the hardware supports it and the coarsest grid is large enough to be safe, else fp32.

    Args:
        precision: `auto`, `fp32` or `bf16`.
        device: the run's device.
        roi_size: patch size in voxels.
        divisor: ratio of the finest grid's side to the coarsest grid's side.

    Raises:
        UserError: for an unknown `precision`, or bf16 on a device without it.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision must be auto, fp32 or bf16, got '{precision}'.")
    if precision == "fp32":
        return None
    device = torch.device(device)
    able = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    if not able:
        if precision == "bf16":
            raise UserError(f"This {device.type} device does not support bf16: use --precision fp32 or auto.")
        return None
    coarsest = math.prod(math.ceil(side / divisor) for side in roi_size)
    if precision == "auto" and device.type == "cpu" and coarsest < SAFE_BOTTLENECK_VOXELS:
        logger.info(f"Using fp32: the coarsest grid has only {coarsest} voxels, for which bf16 on a CPU is not safe.")
        return None
    return torch.bfloat16


def _cpu_has_bf16() -> bool:
    """Whether the CPU supports bf16 in hardware; emulated bf16 would be slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
