# SPDX-License-Identifier: Apache-2.0
"""The memory check refuses a step that does not fit, before the step is tried."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts.errors import UserError
from scripts.networks.vnet import VNet
from scripts.training.limits import activation_bytes, check_memory


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 2, 1))


def test_layer_outputs_are_counted_once_each(network) -> None:
    voxels = 2 * 4 * 6 * 8
    assert activation_bytes(network, (2, 1, 4, 6, 8)) == 4 * voxels * (3 + 3 + 2)


def test_layers_in_place_have_no_output_of_their_own(network) -> None:
    network[1] = nn.ReLU(inplace=True)
    assert activation_bytes(network, (2, 1, 4, 6, 8)) == 4 * 2 * 4 * 6 * 8 * (3 + 2)


def test_autocast_halves_the_bytes(network) -> None:
    assert activation_bytes(network, (2, 1, 4, 6, 8), dtype=torch.bfloat16) == 2 * 2 * 4 * 6 * 8 * (3 + 3 + 2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_count_is_at_most_what_autograd_stores(dtype) -> None:
    network, shape = VNet(base_filters=2, norm="batch"), (2, 1, 32, 32, 32)
    stored = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        stored[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None),
    ):
        network(torch.zeros(shape))
    total = sum(tensor.untyped_storage().nbytes() for tensor in stored.values())
    assert 0.5 * total < activation_bytes(network, shape, dtype=dtype) <= total


def test_counting_does_not_change_the_network(network) -> None:
    activation_bytes(network, (1, 1, 4, 4, 4))
    assert all(p.device.type == "cpu" for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert network(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def need_of(network: nn.Module) -> int:
    weights = 4 * (1 * 3 * 27 + 3 + 3 * 2 + 2)
    return 4 * 2 * 16 * 16 * 32 * (3 + 3 + 2) + 5 * weights  # sides 10, 16, 17 padded to multiples of 16


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_the_memory_limit_is_exact_to_the_byte(network, spare, fits, monkeypatch) -> None:
    available = need_of(network) + spare
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
    arguments = dict(in_channels=1, roi_size=[10, 16, 17], batch_size=2, divisor=16)
    if fits:
        check_memory(network, **arguments)
    else:
        with pytest.raises(UserError, match=r"10x16x17.*--roi_size"):
            check_memory(network, **arguments)


def test_patches_that_leave_one_value_to_a_norm_are_refused():
    network = VNet(base_filters=2, norm="instance")
    with pytest.raises(UserError, match=r"16x16x16.*roi_size") as caught:
        check_memory(network, 1, [16, 16, 16], 2, 16)
    assert "\n" not in str(caught.value)
    check_memory(network, 1, [32, 16, 16], 2, 16)


def test_checkpointing_counts_what_the_stages_keep() -> None:
    stage = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 2, 1))
    network = nn.Sequential(nn.Sequential(stage), nn.Sigmoid())  # the stage is named 0.0
    assert activation_bytes(network, (2, 1, 4, 6, 8)) == 4 * 2 * 4 * 6 * 8 * (3 + 3 + 2 + 2)
    assert activation_bytes(network, (2, 1, 4, 6, 8), activation_checkpointing=True) == 4 * 2 * 4 * 6 * 8 * 2
