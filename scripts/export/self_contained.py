# SPDX-License-Identifier: Apache-2.0
"""`inference.json` of `model.ts`: the inference configuration with values in place, of monai and torch alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent

from scripts.errors import UserError
from scripts.export.settings import ROOT, ExportSettings
from scripts.images.monai import label_dtype

TEMPLATE = ROOT / "configs/self_contained.yaml"
ALLOWED = ("monai.", "torch.")


def self_contained(settings: ExportSettings) -> dict[str, Any]:
    """`configs/self_contained.yaml` with the values of a configuration.

    Raises:
        UserError: if the configuration uses a class that is neither of monai nor of torch.
    """
    template = ConfigParser.load_config_file(str(TEMPLATE))
    written = settings.plain("written_values")
    own = {"class_indices": list(range(len(written))), "written_dtype": label_dtype(written).name}

    def filled(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        if isinstance(node, str) and node.startswith("@") and node[1:] not in template:
            return own[node[1:]] if node[1:] in own else settings.plain(node[1:])
        return node

    config = filled(template)
    foreign = sorted(set(foreign_names(config)))
    if foreign:
        raise UserError(
            f"model.ts can carry classes of monai and torch alone, but the configuration uses {', '.join(foreign)}: "
            "replace it, or deploy the bundle's folder instead of model.ts."
        )
    return config


def foreign_names(node: Any) -> Iterator[str]:
    """Classes and modules in a configuration that come neither from monai nor from torch."""
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
