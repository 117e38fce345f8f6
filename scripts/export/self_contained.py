# SPDX-License-Identifier: Apache-2.0
"""The `inference.json` inside `model.ts`: the configuration of inference, with classes of monai and torch only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent

from scripts.errors import UserError
from scripts.export.settings import ROOT, ExportSettings
from scripts.images.monai import label_dtype

TEMPLATE = ROOT / "configs/self_contained.yaml"
SHARED = ("preprocessing", "dataset", "dataloader", "inferer", "postprocessing")
ALLOWED = ("monai.", "torch.")


def self_contained(settings: ExportSettings) -> dict[str, Any]:
    """`configs/self_contained.yaml`, completed by the blocks `SHARED` of an inference configuration.

    Raises:
        UserError: if these blocks use a class that is not part of monai or torch.
    """
    template = ConfigParser.load_config_file(str(TEMPLATE))
    config = template | {key: settings.parser[key] for key in SHARED}
    config = {key: _without_our_reader(_filled(node, key, set(config), settings)) for key, node in config.items()}
    foreign = sorted(set(foreign_names(config)))
    if foreign:
        raise UserError(
            f"model.ts can only carry classes of monai and torch, but the configuration uses {', '.join(foreign)}: "
            "replace them, or deploy the bundle's folder instead of model.ts."
        )
    return config


def _filled(node: Any, place: str, keys: Set[str], settings: ExportSettings) -> Any:
    """The node at `place` of a configuration, with references to keys outside `keys` replaced by their values."""
    if isinstance(node, Mapping):
        return {name: _filled(value, f"{place}::{name}", keys, settings) for name, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, f"{place}::{index}", keys, settings) for index, value in enumerate(node)]
    if not isinstance(node, str) or set(re.findall(r"@(\w+)", node)) <= keys:
        return node
    if node == "@written_dtype":
        return label_dtype(settings.plain("written_values")).name
    return settings.plain(node[1:] if node.startswith("@") else place)


def _without_our_reader(node: Any) -> Any:
    """Remove this bundle's image reader, so that MONAI chooses one by the ending of the file."""
    if isinstance(node, Mapping):
        ours = str(node.get("reader", "")).startswith("scripts.")
        return {key: _without_our_reader(value) for key, value in node.items() if not (ours and key == "reader")}
    return [_without_our_reader(value) for value in node] if isinstance(node, list) else node


def foreign_names(node: Any) -> Iterator[str]:
    """Yield the classes and modules in a configuration that are not part of monai or torch."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            located = ConfigComponent(node, "", ComponentLocator()).resolve_module_name()
            if not located.startswith(ALLOWED):
                yield target
        for value in node.values():
            yield from foreign_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from foreign_names(value)
    elif isinstance(node, str) and node.startswith("$"):
        yield from re.findall(r"\b(?:scripts|ignite)\b[\w.]*", node)
