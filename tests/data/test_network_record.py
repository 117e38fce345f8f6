# SPDX-License-Identifier: Apache-2.0
"""The record of a network in a weights file: it builds the same network again, and no other code."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from scripts.data.weights import (
    NETWORK,
    build_network,
    network_config,
    network_record,
    record_of,
    save_weights,
)
from scripts.errors import UserError
from scripts.inference.models import load_model, load_weights
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

NETWORKS = {
    "V-Net": lambda: VNet(2, 3, 4, norm=("group", {"num_groups": 2}), dropout_prob=0.1),
    "residual, its own strides": lambda: ResidualUNet(
        1, 2, (8, 16, 16), (1, 1, 1), (2, 2, 1), [2, (2, 2, 1)], norm="batch"
    ),
    "residual, defaults": lambda: ResidualUNet(out_channels=3, widths=[8, 8], blocks=[1, 1]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_again_from_json(name) -> None:
    network = NETWORKS[name]()
    again = build_network(json.loads(json.dumps(network_record(network))))
    assert type(again) is type(network)
    again.load_state_dict(network.state_dict())  # strict: the same layers of the same shapes
    image = torch.rand(1, 2 if name == "V-Net" else 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), network.eval()(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weights_file_needs_no_configuration_of_its_network(name, tmp_path) -> None:
    network = NETWORKS[name]().eval()
    save_weights(network, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", nn.Conv3d(1, 1, 1), "cpu")
    image = torch.rand(1, 2 if name == "V-Net" else 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), network(image))


def test_a_config_block_names_class_and_arguments() -> None:
    block = network_config(network_record(VNet(1, 2, base_filters=4)))
    assert block["_target_"] == "scripts.networks.vnet.VNet" and block["base_filters"] == 4


def test_networks_of_other_libraries_are_not_recorded(tmp_path) -> None:
    class VNet(nn.Conv3d):  # of the same name
        pass

    assert network_record(nn.Conv3d(1, 1, 1)) is None
    save_weights(VNet(1, 1, 1), tmp_path / "model.pt")
    assert record_of(torch.load(tmp_path / "model.pt", weights_only=True), NETWORK) is None


@pytest.mark.parametrize(
    "record",
    [
        {"class": "subprocess.Popen", "arguments": {"args": "touch ran"}},
        {"class": "VNet", "arguments": {"depth": 7}},
        {"class": "VNet", "arguments": {"base_filters": 0}},
        {"arguments": {}},
    ],
    ids=["another class", "an unknown argument", "a wrong argument", "no class"],
)
def test_a_record_that_cannot_be_built_is_refused(record, tmp_path) -> None:
    network = VNet(1, 2, base_filters=2)
    state = network.state_dict()
    state._metadata[""][NETWORK] = record
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        load_weights(tmp_path / "model.pt", network)
