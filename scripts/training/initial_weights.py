# SPDX-License-Identifier: Apache-2.0
"""Start training from given weights instead of random ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.utils import copy_model_state
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.weights import (
    NETWORK,
    network_record,
    preprocessing_record,
    read_weights,
    record_differences,
    record_of,
)
from scripts.distributed.collectives import is_rank0
from scripts.errors import UserError

logger = logging.getLogger("InitialWeights")

LEAST_SHARE = 0.25
"""Minimum share of the network's weights that a file must provide; with less, it belongs to another network."""

NUMBERS: list[Any] = [
    np.dtype,
    # Every pickled NumPy number calls this function, which has different names in NumPy 1 and 2.
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
]
"""Types that `torch.load` must accept because checkpoints of other programs (nnU-Net) also store training curves."""


@dataclass
class Taken:
    """The weights that a network takes from a file.

    Attributes:
        state: the network's state dict, with values of the file where they fit.
        keys: keys of `state` that have the file's values.
        found: the file's tensors under the network's keys, whatever their shape.
        unused: number of tensors in the file whose key the network does not have.
    """

    state: dict[str, torch.Tensor]
    keys: set[str]
    found: dict[str, torch.Tensor]
    unused: int


def with_initial_weights(network: nn.Module, weights: str | Path | None, dataset: DatasetSpec) -> nn.Module:
    """Copy weights of a file into a network before training, matched by name and shape, and log a table of them.

    The file is `model.pt` of this bundle or of another MONAI bundle, or a checkpoint that holds such weights under any
    key (`state_dict`, `model`, `network_weights`, ...). A prefix that all names share, such as `module.`, is removed or
    added. These weights keep their initial values: weights that the file does not hold, or holds in another shape, and
    those of the last layer, unless the file records the same classes.

    Args:
        network: changed in place.
        weights: the file; with `None` the network stays unchanged.
        dataset: the dataset block; its classes and preprocessing are compared with the file's record.

    Returns:
        `network`.

    Raises:
        UserError: if the file is missing or damaged, holds values that are not finite, or fits less than `LEAST_SHARE`
            of the network's weights.

    Example:
        >>> from scripts.data.weights import save_weights
        >>> from scripts.networks.vnet import VNet
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> trained = VNet(out_channels=3, base_filters=4)
        >>> save_weights(trained, f"{folder.name}/model.pt")
        >>> network = with_initial_weights(
        ...     VNet(out_channels=2, base_filters=4), f"{folder.name}/model.pt", DatasetSpec("scans")
        ... )
        >>> bool((network.encoder.stage1[0].conv.weight == trained.encoder.stage1[0].conv.weight).all())
        True
    """
    if weights is None:
        return network
    with torch.serialization.safe_globals(NUMBERS):
        content = read_weights(weights, "give the path of a file with weights, or null to start with random weights")
    trained = record_of(content)
    same_classes = trained is not None and trained["label_names"] == list(dataset.label_names)
    last = last_layer(network, dataset.num_classes)
    kept = () if same_classes or last is None else (last,)
    taken = best_fit(content, network.state_dict(), kept)
    parameters = {key for key, _ in network.named_parameters() if not key.startswith(kept)}
    share = _size(taken.state, parameters & taken.keys) / max(1, _size(taken.state, parameters))
    if share < LEAST_SHARE:
        raise UserError(
            f"{weights} has a value for {share:.0%} of the weights that this run trains{_networks(content, network)}: "
            "give the network that the file was trained with (docs/fine_tuning.md), or another file."
        )
    broken = next((key for key in sorted(taken.keys) if not bool(torch.isfinite(taken.state[key]).all())), None)
    if broken:
        raise UserError(f"{weights} cannot be trained further: {broken} is not finite. Give another file.")
    network.load_state_dict(taken.state)
    if is_rank0():
        lines = [f"Initial weights from {weights}:", *_table(taken, kept), *_remarks(taken, trained, dataset)]
        logger.info("\n".join(lines))
    return network


def last_layer(network: nn.Module, num_classes: int) -> str | None:
    """Name, with a trailing dot, of the layer of the logits: the last convolution with one channel per class."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.out_channels == num_classes
    ]
    return f"{names[-1]}." if names else None


def best_fit(content: Any, state: Mapping[str, torch.Tensor], kept: Sequence[str] = ()) -> Taken:
    """Find the state dict in a file that fits a network best.

    Args:
        content: the loaded file: a state dict, or a mapping that holds state dicts at any depth.
        state: state dict of the network.
        kept: prefixes of keys whose values are not taken from the file.
    """
    best = Taken(dict(state), set(), {}, 0)
    for weights in _state_dicts(content):
        for removed, added in product(_prefixes(weights), _prefixes(state)):
            named = {f"{added}{key[len(removed) :]}": v for key, v in weights.items() if key.startswith(removed)}
            found = {key: value for key, value in named.items() if key in state}
            if sum(value.numel() for key, value in found.items() if value.shape == state[key].shape) > _size(
                best.state, best.keys
            ):
                usable = {key: value for key, value in found.items() if not key.startswith(tuple(kept))}
                filled, keys, _ = copy_model_state(state, usable)
                best = Taken(filled, set(keys), found, len(weights) - len(found))
    return best


def _state_dicts(content: Any) -> Iterator[dict[str, torch.Tensor]]:
    if isinstance(content, Mapping):
        tensors = {key: v for key, v in content.items() if isinstance(key, str) and isinstance(v, torch.Tensor)}
        if tensors:
            yield tensors
        for value in content.values():
            yield from _state_dicts(value)


def _prefixes(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Prefixes of keys, with one or two components and a trailing dot; the empty prefix comes first."""
    found = {".".join(key.split(".")[:depth]) + "." for key in state for depth in (1, 2) if key.count(".") >= depth}
    return ["", *sorted(found)]


def _size(state: Mapping[str, torch.Tensor], keys: set[str]) -> int:
    return sum(state[key].numel() for key in keys)


def _networks(content: Any, network: nn.Module) -> str:
    theirs, ours = record_of(content, NETWORK), network_record(network)
    if theirs is None:
        return ""
    here = type(network).__name__ if ours is None else _text(ours)
    return f" (it is of {_text(theirs)}, and this run trains {here})"


def _text(record: Mapping[str, Any]) -> str:
    return f"{record['class']} with {', '.join(f'{key} {value}' for key, value in record['arguments'].items())}"


def _table(taken: Taken, kept: Sequence[str]) -> list[str]:
    parts: dict[str, list[str]] = {}
    for key in taken.state:
        parts.setdefault(key.split(".")[0], []).append(key)
    width = max(map(len, [*parts, "part"]))
    lines = [f"{'part':{width}}  {'weights':>12}  {'taken':>12}  not taken"]
    for part, keys in [*parts.items(), ("all", list(taken.state))]:
        reasons = {key: _reason(key, taken, kept) for key in keys if key not in taken.keys}
        told = {r: next(key for key in reasons if reasons[key] == r) for r in dict.fromkeys(reasons.values())}
        text = "; ".join(f"{first}{_others(reasons, r)}: {r}" for r, first in told.items())
        weights, own = _size(taken.state, set(keys)), _size(taken.state, set(keys) & taken.keys)
        lines.append(f"{part:{width}}  {weights:12,}  {own:12,}  {text if part != 'all' else ''}".rstrip())
    return lines


def _reason(key: str, taken: Taken, kept: Sequence[str]) -> str:
    if key.startswith(tuple(kept)):
        return "last layer, other classes"
    if key not in taken.found:
        return "not in the file"
    return f"shape {tuple(taken.found[key].shape)} in the file, {tuple(taken.state[key].shape)} here"


def _others(reasons: Mapping[str, str], reason: str) -> str:
    count = sum(each == reason for each in reasons.values()) - 1
    return f" and {count} more" if count else ""


def _remarks(taken: Taken, trained: Mapping[str, Any] | None, dataset: DatasetSpec) -> list[str]:
    here = {key: value for key, value in preprocessing_record(dataset).items() if key != "label_names"}
    different = record_differences(trained, here)
    return [
        *([f"{taken.unused} tensors of the file match no name in the network."] if taken.unused else []),
        *([f"The file was trained with another preprocessing: {'; '.join(different)}."] if different else []),
    ]
