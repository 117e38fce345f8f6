# SPDX-License-Identifier: Apache-2.0
"""Loading the recorded numbers of the reference implementations, and comparing ours with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

GOLDEN_DIR = Path(__file__).resolve().parent

LARGEST: dict[str, dict[str, float]] = {}
"""File to quantity to the largest absolute difference seen in this session; `--golden-differences` prints it."""


def found(pattern):
    """The files that match, at least one, as parameters of a test."""
    paths = sorted(GOLDEN_DIR.glob(pattern))
    assert paths, f"tests/golden has no file {pattern}"
    return [pytest.param(path, id=path.stem) for path in paths]


class Golden(dict):
    """A file's arrays as tensors and its scalars as numbers."""

    def __init__(self, path):
        with np.load(path) as arrays:
            super().__init__(
                {key: arrays[key].item() if arrays[key].ndim == 0 else torch.from_numpy(arrays[key]) for key in arrays}
            )
        self.name = path.stem

    def part(self, prefix):
        """Entries whose key starts with a prefix, with the prefix removed."""
        return {key.removeprefix(prefix): value for key, value in self.items() if key.startswith(prefix)}

    def check(self, actual, key, atol, rtol=0.0, quantity=None):
        """Assert that our value is the recorded one within the tolerance; record the difference under `quantity`."""
        compare(self.name, quantity or key, actual, self[key], atol, rtol)


def compare(name, quantity, actual, expected, atol, rtol=0.0):
    """Assert closeness and record the largest difference."""
    actual = torch.as_tensor(actual).detach().double()
    expected = torch.as_tensor(expected).double()
    if actual.shape == expected.shape and actual.numel() > 0:
        difference = float((actual - expected).abs().nan_to_num(0).max())
        kept = LARGEST.setdefault(name, {})
        kept[quantity] = max(kept.get(quantity, 0.0), difference)
    torch.testing.assert_close(
        actual, expected, atol=atol, rtol=rtol, equal_nan=True, msg=lambda text: f"{quantity}: {text}"
    )


def load_selector(selector: nn.Sequential, entries) -> nn.Sequential:
    """Fill one of our selectors from a file's entries `linear1.weight`, `bn.weight`, ..."""
    places = {"linear1": "0", "bn": "1", "linear2": "3"}
    state = {}
    for key, value in entries.items():
        layer, _, name = key.partition(".")
        state[f"{places[layer]}.{name}"] = torch.as_tensor(value)
    selector.load_state_dict(state)
    return selector


def largest_differences():
    """A Markdown table of the largest difference of each quantity, one row per file."""
    lines = ["| file | largest absolute difference |", "|---|---|"]
    for name in sorted(LARGEST):
        parts = ", ".join(f"{quantity} {value:.1e}" for quantity, value in LARGEST[name].items())
        lines.append(f"| `{name}` | {parts} |")
    return "\n".join(lines) + "\n"
