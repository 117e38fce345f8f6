# SPDX-License-Identifier: Apache-2.0
"""What deterministic transforms do to an image, as plain values that a file can carry and that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Transform

Record = list[dict[str, Any]]
"""One entry for each transform, in order: its name under `transform`, and its settings."""

LEFT_OUT = {"LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CopyItemsd"}
"""They bring a file into memory, or give it a second name: whichever does it, the array is the same."""

NOT_SETTINGS = {"keys", "allow_missing_keys", "lazy", "R", "lazy_evaluation"}


def describe_preprocessing(transform: Transform, key: str = "image") -> Record:
    """The transforms that change grid or intensities of one volume, with their settings.

    Taken from the objects and not from a configuration's text, so that the same thing written in another way, or for
    other volumes beside it, has the same record.

    Args:
        transform: one, or a `Compose` of them.
        key: the volume.
    """
    return [
        {"transform": type(each).__name__, **_settings_of(each, each.keys.index(key), len(each.keys))}
        for each in _flat(transform)
        if isinstance(each, MapTransform) and key in each.keys and type(each).__name__ not in LEFT_OUT
    ]


def differences(trained: Record, here: Record) -> list[str]:
    """What differs between two records, a short text each; none if they are equal."""
    names = [[entry["transform"] for entry in record] for record in (trained, here)]
    if names[0] != names[1]:
        return [f"transforms {', '.join(names[0])} then, {', '.join(names[1])} now"]
    found = []
    for then, now in zip(trained, here, strict=True):
        for setting in sorted(then.keys() | now.keys()):
            before, after = then.get(setting), now.get(setting)
            if before != after:
                found.append(f"{then['transform']} {setting} {before} then, {after} now")
    return found


def _flat(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for each in transform.transforms:
            yield from _flat(each)
    else:
        yield transform


def _settings_of(transform: Any, index: int, keys: int) -> dict[str, Any]:
    """Attributes that are plain values; those that hold one value a key give that of the key at `index`.

    Transforms hold other transforms (`Spacingd` a `Spacing`), whose settings are told as `spacing_transform.pixdim`.
    """
    settings: dict[str, Any] = {}
    for name, value in sorted(vars(transform).items()):
        if name.startswith("_") or name in NOT_SETTINGS:
            continue
        if isinstance(value, Transform):
            inner = _settings_of(value, 0, 1)
            settings |= {f"{name}.{part}": setting for part, setting in inner.items()}
            continue
        if isinstance(value, tuple) and len(value) == keys > 1:
            value = value[index]
        elif isinstance(value, tuple) and len(value) == keys:
            value = value[0]
        plain = _plain(value)
        if plain is not None or value is None:
            settings[name] = plain
    return settings


def _plain(value: Any) -> Any:
    """Numbers, texts and lists of them; `None` for what has no such form."""
    if isinstance(value, torch.dtype | type | np.dtype):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float):
        return None if value != value else value  # NaN, MONAI's "not given", would differ from itself
    return str(value) if isinstance(value, str) else None
