# SPDX-License-Identifier: Apache-2.0
"""The number of threads that a process may use for arithmetic."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

logger = logging.getLogger("threads")

CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which Linux shows the limits of control groups; other systems do not have it."""


def limit_threads(cgroups: Path = CGROUPS) -> None:
    """Let torch use no more threads than its container's quota of cores, unless OMP_NUM_THREADS is set.

    OpenMP respects the affinity mask but not the quota, so it would start a thread for each core of the machine. The
    load of the machine does not matter, because results are bit-identical only with the same number of threads.

    Args:
        cgroups: folder of the control groups' limits.
    """
    quota = _quota(cgroups)
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), quota))
    logger.info(f"Arithmetic on the CPU uses {torch.get_num_threads()} threads.")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as loader processes do; sums over several threads would differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def available_cores(cgroups: Path = CGROUPS) -> int:
    """Return the number of cores that this process may use: those in its affinity mask, up to its container's quota.

    Args:
        cgroups: folder of the control groups' limits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota(cgroups) or cores)


def _quota(cgroups: Path) -> int | None:
    """Return the number of cores that a container's control group grants, rounded up; `None` without a limit."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup versions 2 and 1
        try:
            words = " ".join((cgroups / name).read_text(encoding="utf-8") for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        return math.ceil(quota / period) if quota > 0 and period > 0 else None
    return None
