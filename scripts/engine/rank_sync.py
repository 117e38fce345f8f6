# SPDX-License-Identifier: Apache-2.0
"""What every rank computed of a step becomes one step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn

from scripts.functional.ranks import is_first_rank, num_ranks, sum_over_ranks


def with_common_batch_norm(network: nn.Module) -> nn.Module:
    """Let the batch norms of a network on a GPU use the statistics of all ranks' cases (`SyncBatchNorm`).

    torch has none for CPUs: there the network stays as it is, and each rank normalises its own cases.
    """
    on_gpu = all(p.device.type == "cuda" for p in network.parameters())
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if on_gpu and num_ranks() > 1 else network


class RankSynchroniser:
    """Give every rank the gradients and statistics of the whole batch, so that all take the same step.

    `TapInferer` divides the network's passes, and every rank computes the loss of all cases from the gathered results.
    So the network's gradient is the sum over ranks, as each saw its own cases go through the network; the loss's
    parameters (heads, selectors) have the whole gradient on every rank. Of these, and of the loss's buffers (memory,
    statistics of heads), all take the first rank's copy, so that not even different hardware lets them drift apart.
    Running statistics of norms in the network are averaged over ranks. With one rank nothing happens.

    `DistributedDataParallel` is not used: it divides gradients by the number of ranks whatever the loss normalises by,
    does not know passes outside its `forward`, and has no part in heads and memory.

    Attach it before `GradientGuard`: all ranks then judge the same gradient, and a step with a non-finite value on one
    of them is undone on all.

    Args:
        network: whose passes are divided.
        loss: what every rank computes alike.
    """

    def __init__(self, network: nn.Module, loss: nn.Module) -> None:
        self.network, self.loss = network, loss

    def attach(self, engine: Engine) -> None:
        """Start from the same weights; act when the gradients of each iteration are there."""
        engine.add_event_handler(Events.STARTED, self.start_alike)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def start_alike(self, engine: Engine) -> None:
        """All ranks take the first one's weights and buffers."""
        modules = (self.network, self.loss)
        with torch.no_grad():
            sum_over_ranks([t for m in modules for t in (*m.parameters(), *m.buffers())], contribute=is_first_rank())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Exchange gradients and buffers."""
        if num_ranks() == 1:
            return
        sum_over_ranks(p.grad for p in self.network.parameters() if p.grad is not None)
        of_the_loss = [p.grad for p in self.loss.parameters() if p.grad is not None]
        sum_over_ranks([*of_the_loss, *self.loss.buffers()], contribute=is_first_rank())
        statistics = list(_statistics(self.network))
        sum_over_ranks(statistics)
        for tensor in statistics:
            tensor.div_(num_ranks())


def _statistics(network: nn.Module) -> Iterator[torch.Tensor]:
    return (buffer for buffer in network.buffers() if buffer.is_floating_point())
