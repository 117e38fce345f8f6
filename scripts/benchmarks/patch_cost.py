# SPDX-License-Identifier: Apache-2.0
"""Time a patch costs in training and in inference, by the number of patches a batch.

    python -m scripts.benchmarks.patch_cost --roi_size 48 48 32

torch's convolution on a CPU takes another, slower path for a batch of one whose layers are small
(`aten::slow_conv3d_forward` in its profiler), so two patches can cost less than one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from scripts.networks.vnet import VNet


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call in seconds, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cost_of(network: torch.nn.Module, batch: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Median seconds of a training step (forward and backward) and of a pass without gradient."""
    with_gradient = seconds(lambda: network(batch).mean().backward(), repeats)
    with torch.no_grad():
        return with_gradient, seconds(lambda: network(batch), repeats)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roi_size", nargs=3, type=int, default=[48, 48, 32])
    parser.add_argument("--base_filters", type=int, default=8)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)
    network = VNet(base_filters=options.base_filters, norm="instance")
    print(f"threads {torch.get_num_threads()}, patch {options.roi_size}, base_filters {options.base_filters}")
    print("batch  training s  s/patch  inference s  s/patch")
    for size in options.batches:
        training, inference = cost_of(network, torch.randn(size, 1, *options.roi_size), options.repeats)
        print(
            f"{size:5d}  {training:10.3f}  {training / size:7.3f}  {inference:11.3f}  {inference / size:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
