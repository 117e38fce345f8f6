# SPDX-License-Identifier: Apache-2.0
"""Extra forward passes that leave a network's running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within it, norms of `network` in training mode use the statistics of their batch and record nothing.

    For inputs that are not of the training distribution, such as adversarial ones (Miyato et al., TPAMI 2018, section
    4.3) or mixed images: the network is to be deployed with the statistics of real ones.
    """
    batch_norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    instance_norms = [m for m in network.modules() if isinstance(m, INSTANCE_NORMS) and m.track_running_stats]
    momenta = [norm.momentum for norm in instance_norms]
    try:
        for norm in batch_norms:
            norm.track_running_stats = False
        for norm in instance_norms:  # without tracking torch's instance norm records all the same
            norm.momentum = 0.0
        yield
    finally:
        for norm in batch_norms:
            norm.track_running_stats = True
        for norm, momentum in zip(instance_norms, momenta, strict=True):
            norm.momentum = momentum
