# SPDX-License-Identifier: Apache-2.0
"""Whether a file holds the weights of a network, told before anything else is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from scripts.engine.state_files import first_line
from scripts.errors import BundleError


def require_weights(path: str | Path, network: nn.Module, hint: str) -> Mapping[str, torch.Tensor]:
    """Stop unless `path` holds exactly the weights of `network`, all of them finite.

    The file is read with `weights_only`: nothing in it can run.

    Args:
        path: of a state dict, as `models/model.pt` is.
        network: that is to take it; it stays as it is.
        hint: the way out where the file is not there.

    Returns:
        The weights, on the CPU.

    Raises:
        BundleError: naming the file, and the first weight that is missing, too many, of another shape or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path} does not exist: {hint}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise BundleError(f"{path} cannot be read as weights ({_reason(error)}): replace it.") from error
    mistake = first_mistake(state, network)
    if mistake:
        raise BundleError(
            f"{path} does not fit the network of the config files: {mistake}; give the dataset's and the method's "
            "config files that it was trained with, or another checkpoint."
        )
    return state


def first_mistake(state: object, network: nn.Module) -> str | None:
    """What first keeps a loaded object from being the weights of a network, in words; `None` where it fits."""
    wanted = network.state_dict()
    if not isinstance(state, Mapping) or not any(key in wanted for key in state):
        return "it holds none of its weights"
    for key, value in wanted.items():
        if key not in state:
            return f"{key} is missing"
        if not isinstance(state[key], torch.Tensor) or state[key].shape != value.shape:
            found = tuple(getattr(state[key], "shape", ()))
            return f"{key} has shape {found}, not {tuple(value.shape)}"
        if not bool(torch.isfinite(state[key]).all()):
            return f"{key} is not finite"
    return next((f"{key} is too many" for key in state if key not in wanted), None)


def _reason(error: Exception) -> str:
    # torch's own words advise `weights_only=False`, which is the one thing not to do.
    return "it holds more than weights" if "weights_only" in str(error) else first_line(error)
