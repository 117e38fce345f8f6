# SPDX-License-Identifier: Apache-2.0
"""model.pt holds the network's keys and nothing else, and the record of the preprocessing out of their way."""

from __future__ import annotations

import torch
from torch import nn

from scripts.inference.weights_file import preprocessing_of, save_weights

RECORD = [{"transform": "Spacingd", "spacing_transform.pixdim": [1.0, 2.0, 3.0]}]


def test_the_record_comes_back_without_a_key_of_its_own(tmp_path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    save_weights(network.state_dict(), tmp_path / "model.pt", RECORD)
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(loaded) == list(network.state_dict())
    assert preprocessing_of(loaded) == RECORD


def test_a_network_loads_it_strictly_and_knows_its_versions(tmp_path) -> None:
    """BatchNorm reads its version from the same place: without it, it would ask for older keys."""
    network, other = nn.Sequential(nn.BatchNorm3d(2)), nn.Sequential(nn.BatchNorm3d(2))
    network[0].num_batches_tracked += 7
    save_weights(network.state_dict(), tmp_path / "model.pt", RECORD)
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert loaded._metadata["0"] == network.state_dict()._metadata["0"]
    other.load_state_dict(loaded, strict=True)
    assert other[0].num_batches_tracked == 7


def test_the_network_in_training_is_left_without_it(tmp_path) -> None:
    network = nn.Conv3d(1, 1, 1)
    state = network.state_dict()
    save_weights(state, tmp_path / "model.pt", RECORD)
    assert preprocessing_of(state) is None
    assert preprocessing_of(network.state_dict()) is None


def test_a_file_of_another_origin_has_no_record(tmp_path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    assert preprocessing_of(torch.load(tmp_path / "plain.pt", weights_only=True)) is None
