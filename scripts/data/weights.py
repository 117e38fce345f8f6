# SPDX-License-Identifier: Apache-2.0
"""Weights files that carry the settings of their preprocessing and of their network.

A network whose images are prepared in another way than those it was trained on gives wrong labels without an error.
So `model.pt` holds, beside the weights, the values of the dataset block that decide what the network sees, the
arguments of the network, which can then be built without the config files of the training, how it was trained, and what
the training cases look like.
They lie in the state dict's `_metadata`, where torch keeps the version of each module: they are saved and loaded with
the tensors, also with `weights_only`, add no key to the state dict, and cannot be lost as a second file could.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.errors import UserError, first_line
from scripts.files import require_file, save_atomically
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

ENTRY = "preprocessing"
NETWORK = "network"
RUN = "run"
CASES = "training_cases"
TEST_INTENSITIES = (-1024.0, -500.0, -150.0, -50.0, 0.0, 1.0, 50.0, 150.0, 500.0, 1000.0, 3000.0)
"""Values in which the windows and normalisations of CT and MR differ."""

NETWORKS: dict[str, type[nn.Module]] = {network.__name__: network for network in (VNet, ResidualUNet)}
"""A file may build these networks only, so that opening it cannot run other code."""


def preprocessing_record(dataset: DatasetSpec) -> dict[str, Any]:
    """The values of a dataset block that decide what the network sees, as JSON.

    Left out are the values of classes in label files, which may differ between training and inference. The size of the
    window is recorded, because a network that was trained on small patches segments larger windows badly: how much of
    the anatomy it sees, and the statistics of its instance norms, are then others. Of `intensity` there is only the
    transform and not the block that describes it, so the record holds what it makes of `TEST_INTENSITIES`, for each
    channel; `None` if it cannot be applied to a test image.

    Args:
        dataset: the dataset block.

    Example:
        >>> from monai.transforms import ShiftIntensityd
        >>> shift = ShiftIntensityd("image", 24.0)
        >>> record = preprocessing_record(DatasetSpec("scans", spacing=(1, 1, 2.5), intensity=shift))
        >>> record["spacing"], record["intensity"][0][:3]
        ([1, 1, 2.5], [-1000.0, -476.0, -126.0])
    """
    return json.loads(
        json.dumps(
            {
                "in_channels": dataset.in_channels,
                "label_names": list(dataset.label_names),
                "spacing": list(dataset.spacing),
                "roi_size": list(dataset.roi_size),
                "intensity": _response(dataset.intensity, dataset.in_channels),
            }
        )
    )


def record_differences(trained: Mapping[str, Any] | None, here: Mapping[str, Any]) -> list[str]:
    """Differences between two records, one short text per key; none if `trained` is `None`, which cannot be compared.

    Numbers are compared to a relative 1e-3, as the record of an intensity transform is computed.
    """
    found = []
    for key, now in here.items():
        then = None if trained is None else trained.get(key)
        if then is None or now is None or _same(then, now):
            continue
        if key != "intensity":
            found.append(f"{key} {then} in training, {now} now")
        elif len(then) == len(now):  # in_channels differs otherwise
            value, before, after = next(
                (value * (channel + 1), before, after)
                for channel in range(len(now))
                for value, before, after in zip(TEST_INTENSITIES, then[channel], now[channel], strict=True)
                if not _same(before, after)
            )
            found.append(f"intensity maps {value:g} of a test image to {before:g} in training, to {after:g} now")
    return found


def save_weights(
    network: nn.Module,
    path: str | Path,
    dataset: DatasetSpec | None = None,
    run: Mapping[str, Any] | None = None,
    cases: Mapping[str, Any] | None = None,
) -> None:
    """Write a network's state dict with the records of its preprocessing, of itself and of its training, atomically.

    Args:
        network: the one that is deployed; its record is left out if it is not a network of this bundle.
        path: the file.
        dataset: the dataset block; `None`: no record of the preprocessing.
        run: the record of the training (`scripts/training/run_record.py`), JSON types; `None`: none.
        cases: what the training cases look like (`scripts/data/training_cases.py`), JSON types; `None`: no record.

    Raises:
        UserError: if the file cannot be written.
    """
    state = network.state_dict()
    marked = OrderedDict(state)
    modules = OrderedDict(getattr(state, "_metadata", {}))
    records: dict[str, Any] = {ENTRY: dataset and preprocessing_record(dataset), NETWORK: network_record(network)}
    records |= {RUN: run, CASES: cases}
    modules[""] = {**modules.get("", {}), **{key: value for key, value in records.items() if value is not None}}
    setattr(marked, "_metadata", modules)  # torch's own place, which is not declared  # noqa: B010
    save_atomically(marked, path)


def read_weights(path: str | Path, hint: str) -> Any:
    """Load a file that `torch.save` wrote, on the CPU and with `weights_only`, which runs no code of the file.

    Args:
        path: the file.
        hint: what to do if it does not exist.

    Raises:
        UserError: if the file is missing, damaged, or contains more than weights.
    """
    require_file(path, hint)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        # torch's own message recommends `weights_only=False`, which would let the file run code.
        reason = "it contains more than weights" if "weights_only" in str(error) else first_line(error)
        raise UserError(f"{path} cannot be read as weights ({reason}): replace it.") from error


def record_of(state: object, entry: str = ENTRY) -> dict[str, Any] | None:
    """A record in a loaded state dict: `ENTRY`, `NETWORK`, `RUN` or `CASES`; `None` if it has none."""
    modules = getattr(state, "_metadata", {})
    record = modules.get("", {}).get(entry) if isinstance(modules, Mapping) else None
    return record if isinstance(record, dict) else None


def _response(intensity: Transform | None, in_channels: int) -> list[list[float]] | None:
    if intensity is None:
        return None
    # Channels differ, so that a normalisation of each channel differs from one of all channels together.
    ramp = torch.tensor(TEST_INTENSITIES)
    image = torch.stack([ramp * (channel + 1) for channel in range(in_channels)])[:, :, None, None].repeat(1, 1, 2, 2)
    try:
        result = torch.as_tensor(intensity({"image": image})["image"])[:, :, 0, 0]
    except Exception:  # a transform of the user's own may need other keys or a real image
        return None
    return [[float(f"{value:.6g}") for value in channel] for channel in result.tolist()]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float | int) and isinstance(second, float | int):
        return math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-6)
    return first == second


def network_record(network: nn.Module) -> dict[str, Any] | None:
    """Class and arguments of a network, as JSON; `None` for a network that is not of this bundle.

    Example:
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
