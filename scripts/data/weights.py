# SPDX-License-Identifier: Apache-2.0
"""Weights files that also store the settings of the preprocessing and of the network.

A network whose images are preprocessed differently from the training images gives wrong labels without an error. So
`model.pt` holds, in addition to the weights:

- the values of the dataset block that determine the input of the network;
- the arguments of the network, so that it can be built without the config files of the training;
- a record of the training, and measurements of the training cases.

These records are in the `_metadata` of the state dict, where torch keeps the version of each module. They are saved and
loaded with the tensors, even with `weights_only`, add no key to the state dict, and cannot be lost as a second file
could.
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
"""Intensities for which the windows and normalisations of CT and MR give different results."""

NETWORKS: dict[str, type[nn.Module]] = {network.__name__: network for network in (VNet, ResidualUNet)}
"""The only networks that a file may build, so that opening it cannot run other code."""


def preprocessing_record(dataset: DatasetSpec) -> dict[str, Any]:
    """Return the values of a dataset block that determine the input of the network, as JSON.

    The label values of the classes are left out, because they may differ between training and inference. The window
    size is recorded, because a network that was trained on small patches segments larger windows badly: the visible
    part of the anatomy and the statistics of instance norms then differ. For `intensity` only the transform object is
    known and not the block that describes it, so the record holds its output for `TEST_INTENSITIES` in each channel, or
    `None` if it cannot be applied to a test image.

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
    """Describe the differences between two records, one short text per key; if `trained` is `None`, there are none.

    Numbers are compared with a relative tolerance of 1e-3, because the record of an intensity transform is computed.
    """
    found = []
    for key, now in here.items():
        then = None if trained is None else trained.get(key)
        if then is None or now is None or _same(then, now):
            continue
        if key != "intensity":
            found.append(f"{key} {then} in training, {now} now")
        elif len(then) == len(now):  # otherwise in_channels differs, which is reported already
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
    """Write a network's state dict with records of its preprocessing, network and training, atomically.

    Args:
        network: the network to deploy; its record is left out if it is not a network of this bundle.
        path: the file.
        dataset: the dataset block; `None` to record no preprocessing.
        run: the record of the training (`scripts/training/run_record.py`), JSON types; `None` for no record.
        cases: measurements of the training cases (`scripts/data/training_cases.py`), JSON types; `None` for no record.

    Raises:
        UserError: if the file cannot be written.
    """
    state = network.state_dict()
    marked = OrderedDict(state)
    modules = OrderedDict(getattr(state, "_metadata", {}))
    records: dict[str, Any] = {ENTRY: dataset and preprocessing_record(dataset), NETWORK: network_record(network)}
    records |= {RUN: run, CASES: cases}
    modules[""] = {**modules.get("", {}), **{key: value for key, value in records.items() if value is not None}}
    setattr(marked, "_metadata", modules)  # torch uses this undeclared attribute  # noqa: B010
    save_atomically(marked, path)


def read_weights(path: str | Path, hint: str) -> Any:
    """Load a file that `torch.save` wrote, on the CPU and with `weights_only`, so that no code in the file is run.

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
    """Return a record in a loaded state dict: `ENTRY`, `NETWORK`, `RUN` or `CASES`; `None` if it is missing."""
    modules = getattr(state, "_metadata", {})
    record = modules.get("", {}).get(entry) if isinstance(modules, Mapping) else None
    return record if isinstance(record, dict) else None


def _response(intensity: Transform | None, in_channels: int) -> list[list[float]] | None:
    if intensity is None:
        return None
    # Channels get different values, so that per-channel normalisation differs from joint normalisation.
    ramp = torch.tensor(TEST_INTENSITIES)
    image = torch.stack([ramp * (channel + 1) for channel in range(in_channels)])[:, :, None, None].repeat(1, 1, 2, 2)
    try:
        result = torch.as_tensor(intensity({"image": image})["image"])[:, :, 0, 0]
    except Exception:  # a user's transform may need other keys or a real image
        return None
    return [[float(f"{value:.6g}") for value in channel] for channel in result.tolist()]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float | int) and isinstance(second, float | int):
        return math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-6)
    return first == second


def network_record(network: nn.Module) -> dict[str, Any] | None:
    """Return class and arguments of a network, as JSON; `None` for a network that is not part of this bundle.

    Example:
        >>> network_record(VNet(in_channels=2, out_channels=3, base_filters=4))["class"]
        'VNet'
    """
    if not isinstance(network, VNet | ResidualUNet) or type(network) not in NETWORKS.values():
        return None
    return {"class": type(network).__name__, "arguments": dict(network.arguments)}


def network_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config block (`_target_` and arguments) of a recorded network.

    Raises:
        ValueError: if this version of the bundle has no such network.
    """
    network = _class_of(record)
    return {"_target_": f"{network.__module__}.{network.__name__}", **record["arguments"]}


def build_network(record: Mapping[str, Any]) -> nn.Module:
    """Build the recorded network, with random weights.

    Raises:
        ValueError: if this version of the bundle has no such network.
        TypeError: if the network has other arguments in this version.
    """
    return _class_of(record)(**record["arguments"])


def _class_of(record: Mapping[str, Any]) -> type[nn.Module]:
    network = NETWORKS.get(record["class"])
    if network is None:
        raise ValueError(f"there is no network {record['class']}")
    return network
