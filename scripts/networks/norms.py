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
    """Context in which norms of `network` in training mode use their batch's statistics and record nothing.

    For inputs outside the training distribution, such as adversarial (Miyato et al., TPAMI 2018, section 4.3) or mixed
    images: the deployed network needs the statistics of real images.
    """
    batch_norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    instance_norms = [m for m in network.modules() if isinstance(m, INSTANCE_NORMS) and m.track_running_stats]
    momenta = [recording.momentum for recording in instance_norms]
    try:
        for norm in batch_norms:
            norm.track_running_stats = False
        for recording in instance_norms:  # torch's instance norm records even without tracking
            recording.momentum = 0.0
        yield
    finally:
        for norm in batch_norms:
            norm.track_running_stats = True
        for recording, momentum in zip(instance_norms, momenta, strict=True):
            recording.momentum = momentum
