# SPDX-License-Identifier: Apache-2.0
"""What is refused when published weights do not belong to the network; real ones: tests/test_golden_vnet.py."""

from __future__ import annotations

import pytest
import torch

from scripts.networks.vnet import VNet, load_reference_backbone

WIDTHS = {"in_channels": 1, "out_channels": 2, "base_filters": 2}


def published_state(network, fill=None):
    """The network's entries under other names of the published form, with what the published file holds besides."""
    state = {"projection_head.0.weight": torch.zeros(32, 16)}
    for i, (key, value) in enumerate(network.state_dict().items()):
        part, kind = key.split(".")[0], key.rpartition(".")[2]
        state[f"{part}.entry_{i}.{kind}"] = value.clone() if fill is None else torch.full_like(value, fill + i)
    return state | {"contrastive_class_selector_0.0.weight": torch.zeros(32, 32)}


def test_entries_are_taken_in_order_and_heads_passed_over():
    network = VNet(**WIDTHS)
    assert load_reference_backbone(network, published_state(network, fill=3)) is network
    for i, value in enumerate(network.state_dict().values()):
        assert torch.equal(value, torch.full_like(value, 3 + i))


def test_weights_are_copied_and_not_shared():
    network = VNet(**WIDTHS)
    state = published_state(network, fill=3)
    load_reference_backbone(network, state)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert state["encoder.entry_0.weight"].eq(3).all()


def test_missing_entry_is_refused_with_both_counts():
    network = VNet(**WIDTHS)
    state, count = published_state(network), len(network.state_dict())
    del state["encoder.entry_5.running_var"]
    with pytest.raises(ValueError, match=f"{count - 1} .*{count}"):
        load_reference_backbone(network, state)


def test_network_without_batch_norm_is_refused():
    state = published_state(VNet(**WIDTHS))
    with pytest.raises(ValueError, match="entries"):
        load_reference_backbone(VNet(**WIDTHS, norm=None), state)


@pytest.mark.parametrize("change", [{"in_channels": 2}, {"out_channels": 3}, {"base_filters": 4}])
def test_other_widths_are_refused_naming_the_entry_and_both_shapes_and_nothing_is_loaded(change):
    state = published_state(VNet(**WIDTHS), fill=3)
    network = VNet(**WIDTHS | change)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"(encoder|decoder)\.entry_\d+\.\w+"):
        load_reference_backbone(network, state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r" 0 .*entries"):
        load_reference_backbone(VNet(**WIDTHS), {"layer.weight": torch.zeros(2)})
