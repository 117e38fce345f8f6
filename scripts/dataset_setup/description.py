# SPDX-License-Identifier: Apache-2.0
"""What a `dataset.json` of the Decathlon or of nnU-Net says about channels and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.errors import UserError


@dataclass(frozen=True)
class Description:
    """Names that a dataset comes with; empty where it says nothing.

    Attributes:
        channel_names: of each image channel, e.g. `CT`.
        label_names: value in the label files to name.
        ignore_value: value of voxels that are neither structure nor background.
    """

    channel_names: tuple[str, ...] = ()
    label_names: dict[int, str] = field(default_factory=dict)
    ignore_value: int | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary.

    Raises:
        UserError: if it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary; docs/data.md shows the form.")
    return content


def describe(content: Mapping[str, Any]) -> Description:
    """Read `modality` or `channel_names`, and `labels`, which the two write the other way round.

    nnU-Net's regions (several values under one name) overlap, so they name no value; its label `ignore` is the value to
    ignore. What is in no known form is passed over: values can be counted and named without it.
    """
    channels = content.get("channel_names") or content.get("modality") or {}
    names = [str(channels[key]) for key in sorted(channels, key=str)] if isinstance(channels, Mapping) else []
    labels: dict[int, str] = {}
    ignore = None
    given = content.get("labels")
    for key, value in given.items() if isinstance(given, Mapping) else ():
        number, name = (int(key), value) if str(key).lstrip("-").isdigit() else (value, key)
        if not isinstance(number, int | str) or not str(number).lstrip("-").isdigit():
            continue
        if str(name).lower() == "ignore":
            ignore = int(number)
        else:
            labels[int(number)] = str(name)
    return Description(tuple(names), labels, ignore)
