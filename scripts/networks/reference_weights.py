# SPDX-License-Identifier: Apache-2.0
"""Take over V-Net weights that were trained with the published code of SS-Net and its relatives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

BACKBONE_PREFIXES = ("encoder.", "decoder.")


def load_reference_backbone(network: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Copy the encoder and decoder of a published state dict into `VNet`, entry by entry in order.

    Both list the same layers in the same order under other names; heads and selectors in `state` are passed over.

    Args:
        network: a `VNet` with batch norm and the widths, channels and classes of `state`.
        state: the published state dict, in its own order.

    Returns:
        `network`, loaded.

    Raises:
        ValueError: if the number of entries or the shape or kind of one differs.
    """
    theirs = [(key, value) for key, value in state.items() if key.startswith(BACKBONE_PREFIXES)]
    ours = network.state_dict()
    if len(theirs) != len(ours):
        raise ValueError(f"The state dict has {len(theirs)} encoder and decoder entries, the network {len(ours)}.")
    for (their_key, value), (our_key, own) in zip(theirs, ours.items(), strict=True):
        if value.shape != own.shape:
            raise ValueError(f"{their_key} has shape {tuple(value.shape)}, but {our_key} needs {tuple(own.shape)}.")
        if their_key.rpartition(".")[2] != our_key.rpartition(".")[2]:
            raise ValueError(f"{their_key} stands where {our_key} is expected: the state dict has another order.")
        ours[our_key] = value
    network.load_state_dict(ours)
    return network
