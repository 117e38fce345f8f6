# SPDX-License-Identifier: Apache-2.0
"""V-Net and heads against the recorded numbers of the reference implementation (SS-Net)."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.heads import ProjectionHead
from scripts.networks.vnet import BACKBONE_PREFIXES, VNet
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import voxel_embeddings
from scripts.training.inferer import FeatureInferer
from tests.golden.golden_files import Golden, found
from tests.golden.golden_network import load_by_rule, network_for, our_names, reference_state

TOLERANCE = {0: 1e-4, 1: 1e-3}  # by mode_train


def check(actual, golden, key, quantity):
    golden.check(actual, key, atol=TOLERANCE[golden["mode_train"]], quantity=quantity)


@pytest.mark.parametrize("path", found("vnet_forward*.npz"))
def test_recorded_forward_pass_is_reproduced(path):
    golden = Golden(path)
    state = reference_state(golden)
    network = network_for(golden)
    with torch.no_grad():
        logits, features = FeatureInferer("decoder.stage1", divisor=16).logits_and_features(golden["input"], network)
    check(logits, golden, "out.logits", "logits")
    check(features, golden, "out.embedding", "embedding")
    ours = our_names(golden)
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
        widths = reversed(state[f"{name}_head.0.weight"].shape)
        head = load_by_rule(ProjectionHead(*widths), state, f"{name}_head").train(bool(golden["mode_train"]))
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
    assert torch.equal(voxel_embeddings(golden["out.embedding"])[::257][:64], golden["head_rows"])


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("path", found("vnet_counts*.npz"))
def test_recorded_parameter_counts_are_reproduced(path):
    golden = Golden(path)
    names = ("in_channels", "num_classes", "num_filters", "out.num_parameters_encoder_decoder", "out.num_parameters")
    for channels, classes, filters, expected, with_heads in zip(
        *(golden[name].tolist() for name in names), strict=True
    ):
        network = VNet(channels, classes, filters)
        assert count(network) == expected
        # The reference's projection head always takes 16 channels.
        heads = [ProjectionHead(16, 32), ProjectionHead(32, 32), ClassSelectors(classes, 32, "reference")]
        assert count(network, *heads) == with_heads


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
