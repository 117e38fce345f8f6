# SPDX-License-Identifier: Apache-2.0
"""Describe this bundle's networks in weights files, and build them again from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

# A file may build these networks only, so that opening it cannot run other code.
NETWORKS: dict[str, type[nn.Module]] = {network.__name__: network for network in (VNet, ResidualUNet)}


def network_record(network: nn.Module) -> dict[str, Any] | None:
    """Class and arguments of a network, as JSON; `None` for a network that is not of this bundle.

    Example:
        >>> from scripts.networks.vnet import VNet
        >>> network_record(VNet(in_channels=2, out_channels=3, base_filters=4))["class"]
        'VNet'
    """
    if not isinstance(network, VNet | ResidualUNet) or type(network) not in NETWORKS.values():
        return None
    return {"class": type(network).__name__, "arguments": dict(network.arguments)}


def network_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config block (`_target_` and arguments) of a recorded network.

    Raises:
        ValueError: if this version of the bundle has no such network.
    """
    network = _class_of(record)
    return {"_target_": f"{network.__module__}.{network.__name__}", **record["arguments"]}


def build_network(record: Mapping[str, Any]) -> nn.Module:
    """The recorded network, with new weights.

    Raises:
        ValueError: if this version of the bundle has no such network.
        TypeError: if it has other arguments.
    """
    return _class_of(record)(**record["arguments"])


def _class_of(record: Mapping[str, Any]) -> type[nn.Module]:
    network = NETWORKS.get(record["class"])
    if network is None:
        raise ValueError(f"there is no network {record['class']}")
    return network
