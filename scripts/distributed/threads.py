# SPDX-License-Identifier: Apache-2.0
"""How many threads a process may use for arithmetic."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

logger = logging.getLogger("threads")

CGROUPS = Path("/sys/fs/cgroup")


def available_cores(cgroups: Path = CGROUPS) -> int:
    """The cores that this process may use: those of its affinity mask, or fewer if its container has a smaller quota.

    It does not depend on what else the machine does, because results repeat to the bit only with the same number of
    threads.

    Args:
        cgroups: where the kernel shows the limits of control groups.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroups: Path) -> float | None:
    """Cores that the control group of a container grants; `None` if it has no limit."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2 and 1
        try:
            words = " ".join((cgroups / name).read_text(encoding="utf-8") for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        return quota / period if quota > 0 and period > 0 else None
    return None


def limit_threads() -> None:
    """Let torch use no more threads than there are cores for this process, unless OMP_NUM_THREADS says how many.

    OpenMP knows the affinity mask but not a container's quota: it would start a thread for each core of the machine.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    logger.info(f"Arithmetic on the CPU uses {torch.get_num_threads()} threads.")
