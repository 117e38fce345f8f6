# SPDX-License-Identifier: Apache-2.0
"""The reference's network, its parameters computed by a rule and translated to our names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.networks.vnet import BACKBONE_PREFIXES, VNet, load_reference_backbone
from tests.golden.golden_files import GOLDEN_DIR

PRIME = 2147483647


def value_by_rule(index, key, shape):
    """Parameter `index` of the state dict, by the rule in tests/golden/README.md."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    k = np.arange(math.prod(shape), dtype=np.int64)
    h = (1103515245 * ((k * k) % PRIME) + 12820163 * (index + 1) * (k + 1)) % PRIME
    u = (2.0 * h / PRIME - 1.0).reshape(shape)
    if key.endswith("weight"):
        value = 1 + 0.1 * u if len(shape) == 1 else math.sqrt(6 / (u.size / shape[0])) * u
    else:
        value = 1 + 0.1 * np.abs(u) if key.endswith("running_var") else 0.1 * u
    return torch.from_numpy(value.astype(np.float32))


def reference_state(golden):
    """The reference's state dict for the widths of a golden file, by the rule in tests/golden/README.md."""
    header = ", ".join(f"{name}={int(golden[name])}" for name in ("in_channels", "num_classes", "num_filters"))
    for path in sorted(GOLDEN_DIR.glob("vnet_state_dict_*.txt")):
        first, *lines = path.read_text().splitlines()
        if header + "," in first:
            break
    else:
        pytest.fail(f"No vnet_state_dict_*.txt in {GOLDEN_DIR} is headed '{header}'.")
    state = {}
    for line in lines:
        index, key, sides = line.split()
        shape = () if sides == "scalar" else tuple(int(side) for side in sides.split("x"))
        state[key] = value_by_rule(int(index), key, shape)
    return state


def vnet_of(golden):
    return VNet(*(int(golden[name]) for name in ("in_channels", "num_classes", "num_filters")))


def network_for(golden):
    """Our V-Net with the reference's parameters, in the file's mode."""
    return load_reference_backbone(vnet_of(golden), reference_state(golden)).train(bool(golden["mode_train"]))


def our_names(golden):
    """Map the reference's name of each backbone entry to ours."""
    theirs = (key for key in reference_state(golden) if key.startswith(BACKBONE_PREFIXES))
    return dict(zip(theirs, vnet_of(golden).state_dict(), strict=True))


def load_by_rule(module, state, name):
    """Load the reference's entries below a name into a head or selector."""
    module.load_state_dict(
        {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    )
    return module
