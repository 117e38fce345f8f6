# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a pure function of the seed and of the place in a run where they are used.

The state of a generator is never stored; a run that was killed and resumed still draws the same numbers.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def derive_seed(seed: int, *where: int | str) -> int:
    """Hash a run's seed and a place in the run (stream, iteration, rank, batch_index, ...) to a seed in [0, 2**32).

    Args:
        seed: the run's seed, at least 0.
        where: integers (at least 0) and names; their order matters.
    """
    words = [zlib.crc32(w.encode()) if isinstance(w, str) else int(w) for w in where]
    # NumPy pads with zeros, so the number of words is hashed too; otherwise (7, 5) and (7, 5, 0) would be equal.
    return int(np.random.SeedSequence([len(words), int(seed), *words]).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def draw_index(seed: int, stream: str, position: int, size: int) -> int:
    """Return the case at a position of an endless stream that repeats all cases, in a new order in each pass.

    Args:
        seed: the run's seed.
        stream: name of the stream; streams are independent of each other.
        position: position in the stream, counted from 0.
        size: number of cases, at least 1.

    Returns:
        A case index in [0, size). Positions `k * size` to `(k + 1) * size - 1` hold each case once.
    """
    pass_index, place = divmod(position, size)
    return int(np.random.default_rng(derive_seed(seed, stream, "order", pass_index)).permutation(size)[place])
