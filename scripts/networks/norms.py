# SPDX-License-Identifier: Apache-2.0
"""Normalisation layers: instance norm in channels-last layout, and passes that do not update running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.layers.factories import Norm
from torch import nn
from torch.nn.functional import batch_norm, instance_norm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Context in which the norms of a network in training mode use batch statistics, but do not record them.

    Use it for inputs outside the training distribution, such as adversarial (Miyato et al., TPAMI 2018, section 4.3) or
    mixed images, because the deployed network needs the statistics of real images.
    """
    batch_norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    instance_norms = [m for m in network.modules() if isinstance(m, INSTANCE_NORMS) and m.track_running_stats]
    momenta = [recording.momentum for recording in instance_norms]
    try:
        for norm in batch_norms:
            norm.track_running_stats = False
        for recording in instance_norms:  # torch's instance norm records statistics even without tracking
            recording.momentum = 0.0
        yield
    finally:
        for norm in batch_norms:
            norm.track_running_stats = True
        for recording, momentum in zip(instance_norms, momenta, strict=True):
            recording.momentum = momentum


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance norm that keeps the channels-last layout, with the same result and state dict as torch's.

    torch's instance norm copies such inputs to the contiguous layout and returns the result in it, so that the layers
    after it mix both layouts. Batch norm keeps the layout, and for a single case it equals instance norm.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each case, `(B, C, D, H, W)`."""
        if torch.jit.is_scripting():
            return instance_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        other_layout = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last_3d)
        if self.track_running_stats or not other_layout or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().forward(input)
        return torch.cat(
            [batch_norm(case, None, None, self.weight, self.bias, True, 0.0, self.eps) for case in input.split(1)]
        )


INSTANCE_NORM = "instance_any_layout"
"""Name of `InstanceNorm3d` in MONAI's norm factory."""


@Norm.factory_function(INSTANCE_NORM)
def _instance_norm_factory(dim: int) -> type[nn.Module]:
    return InstanceNorm3d
