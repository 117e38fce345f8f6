# SPDX-License-Identifier: Apache-2.0
"""V-Net and heads against the recorded numbers of the reference implementation (SS-Net), where they are at hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.engine.tap_inferer import TapInferer
from scripts.functional.voxels import rows_of
from scripts.networks.heads import EmbeddingHead
from scripts.networks.reference_weights import BACKBONE_PREFIXES, load_reference_backbone
from scripts.networks.vnet import VNet
from tests.golden_files import GOLDEN_DIR, Golden, found

TOLERANCE = {0: 1e-4, 1: 1e-3}  # by mode_train
PRIME = 2147483647


def value_by_rule(index, key, shape):
    """Parameter `index` of the state dict as the golden README sets it."""
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
    """The reference's state dict, by rule, for the widths of a golden file; its list is chosen by its header."""
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


def head_by_rule(state, name):
    entries = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    head = EmbeddingHead(*reversed(entries["0.weight"].shape))
    head.load_state_dict(entries)
    return head


def network_for(golden, state):
    network = VNet(*(int(golden[name]) for name in ("in_channels", "num_classes", "num_filters")))
    return load_reference_backbone(network, state).train(bool(golden["mode_train"]))


def check(actual, golden, key, quantity):
    golden.check(actual, key, atol=TOLERANCE[golden["mode_train"]], quantity=quantity)


@pytest.mark.parametrize("path", found("vnet_forward*.npz"))
def test_recorded_forward_pass_is_reproduced(path):
    golden = Golden(path)
    state = reference_state(golden)
    network = network_for(golden, state)
    with torch.no_grad():
        output = TapInferer("decoder.stage1", divisor=16)(golden["input"], network)
    check(output["logits"], golden, "out.logits", "logits")
    check(output["features"], golden, "out.embedding", "embedding")
    ours = dict(zip((key for key in state if key.startswith(BACKBONE_PREFIXES)), network.state_dict(), strict=True))
    for key in golden:
        name = key.removeprefix("after.")
        if key.startswith("after.") and name in ours:
            check(network.state_dict()[ours[name]], golden, key, "statistics")
    if not golden["mode_train"]:
        for name, own in ours.items():
            assert torch.equal(network.state_dict()[own], state[name])


@pytest.mark.parametrize("path", found("vnet_forward*.npz"))
def test_recorded_projection_and_prediction_are_reproduced(path):
    golden = Golden(path)
    state = reference_state(golden)
    known = {key for key in golden if key.startswith("after.") and not key[6:].startswith(BACKBONE_PREFIXES)}
    rows = golden["head_rows"]
    for name in ("projection", "prediction"):
        head = head_by_rule(state, f"{name}_head").train(bool(golden["mode_train"]))
        with torch.no_grad():
            rows = head(rows)
        check(rows, golden, f"out.{name}", name)
        for key in [key for key in known if key.startswith(f"after.{name}_head.")]:
            check(head.state_dict()[key.removeprefix(f"after.{name}_head.")], golden, key, "head statistics")
            known.remove(key)
    assert not [key for key in known if "selector" not in key]


@pytest.mark.parametrize("path", found("vnet_forward*.npz"))
def test_head_rows_are_rows_of_the_embedding(path):
    """Our row order is the recorded one: every 257th of the channel-last flattened embedding."""
    golden = Golden(path)
    assert torch.equal(rows_of(golden["out.embedding"])[::257][:64], golden["head_rows"])


@pytest.mark.parametrize("path", found("vnet_counts*.npz"))
def test_recorded_parameter_counts_are_reproduced(path):
    golden = Golden(path)
    names = ("in_channels", "num_classes", "num_filters", "out.num_parameters_encoder_decoder")
    for channels, classes, filters, expected in zip(*(golden[name].tolist() for name in names), strict=True):
        network = VNet(channels, classes, filters)
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


def conv_macs(network, image):
    """Multiply-adds of all convolutions, counted by hooks; a transposed one by its input voxels."""
    total = 0

    def add(module, args, output):
        nonlocal total
        voxels = (args[0] if isinstance(module, torch.nn.ConvTranspose3d) else output)[0, 0].numel()
        total += voxels * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.register_forward_hook(add)
    network(image)
    return total


@pytest.mark.parametrize("path", found("vnet_counts*.npz"))
def test_recorded_multiply_adds_are_reproduced(path):
    golden = Golden(path)
    names = ("in_channels", "num_classes", "num_filters", "spatial_size", "out.conv_macs")
    for channels, classes, filters, shape, expected in zip(*(golden[name].tolist() for name in names), strict=True):
        with torch.device("meta"):
            assert conv_macs(VNet(channels, classes, filters).eval(), torch.empty(1, channels, *shape)) == expected
