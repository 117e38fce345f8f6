# SPDX-License-Identifier: Apache-2.0
"""`model.pt`: exactly the network's keys, and with them, out of their way, the preprocessing of its training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.data.preprocessing_record import Record
from scripts.files import save_atomically

ENTRY = "preprocessing"


def save_weights(state: Mapping[str, torch.Tensor], path: str | Path, preprocessing: Record | None = None) -> None:
    """Write a state dict with the record of the preprocessing, whole or not at all.

    The record lies in the state dict's own `_metadata`, where torch keeps the version of each module: it is saved and
    loaded with the tensors, also with `weights_only`, it adds no key, and it cannot be parted from the file as a second
    file beside it could.

    Args:
        state: of the network that is deployed.
        path: the file.
        preprocessing: of `scripts.data.preprocessing_record.describe_preprocessing`.

    Raises:
        UserError: if the file cannot be written.
    """
    marked = OrderedDict(state)
    modules = OrderedDict(getattr(state, "_metadata", {}))
    if preprocessing is not None:
        modules[""] = {**modules.get("", {}), ENTRY: preprocessing}
    marked._metadata = modules
    save_atomically(marked, path)


def preprocessing_of(state: Any) -> Record | None:
    """The record in a loaded state dict; `None` if it has none, as with a file of another origin."""
    modules = getattr(state, "_metadata", {})
    return modules.get("", {}).get(ENTRY) if isinstance(modules, Mapping) else None
