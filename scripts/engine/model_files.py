# SPDX-License-Identifier: Apache-2.0
"""A trained network from each kind of file that holds one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from scripts.engine.onnx_network import OnnxNetwork
from scripts.engine.state_files import first_line
from scripts.engine.weights_check import require_weights
from scripts.errors import BundleError

Network = Callable[[torch.Tensor], torch.Tensor]
"""Windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`."""

TRAIN_FIRST = "train first, or name its folder by --ckpt_dir"
MODEL_ENDINGS = (".pt", ".ts", ".pt2", ".onnx")


def load_model(path: str | Path, network_def: nn.Module, device: torch.device | str) -> Network:
    """The network in a file, in evaluation mode.

    Args:
        path: `model.pt` (weights of `network_def`), `model.ts` (TorchScript), `model.pt2` (`torch.export`) or
            `model.onnx`.
        network_def: takes the weights of a `.pt` file; other files bring their network along.
        device: where it computes.

    Raises:
        BundleError: for a file that is missing, damaged, of another kind, or does not fit `network_def`.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path} does not exist: {TRAIN_FIRST}.")
    loaders = {
        ".pt": lambda: _with_weights(path, network_def).to(device),
        ".ts": lambda: torch.jit.load(path, map_location=device).eval(),
        ".pt2": lambda: torch.export.load(path).module().to(device),
        ".onnx": lambda: OnnxNetwork(path, device),
    }
    if path.suffix not in loaders:
        raise BundleError(f"{path} is no model file: checkpoint must end in {', '.join(MODEL_ENDINGS)}.")
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated and still what MONAI exports.
            warnings.simplefilter("ignore", DeprecationWarning)
            return loaders[path.suffix]()
    except BundleError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise BundleError(f"{path} cannot be read as a model ({first_line(error)}): replace it.") from error


def check_model(network: Network, path: str | Path, in_channels: int, num_classes: int, window: Sequence[int]) -> None:
    """Run one empty window: better one sentence now than a failure for every case.

    Args:
        network: on the CPU or taking what is there.
        path: its file, for the message.
        in_channels: image channels.
        num_classes: K.
        window: sides of a window, voxels.

    Raises:
        BundleError: if the network cannot be called with such a window, or has not `num_classes` outputs.
    """
    try:
        logits = network(torch.zeros(1, in_channels, *window))
    except Exception as error:
        raise BundleError(
            f"{path} cannot be run on windows of {in_channels} channel(s) and {' x '.join(map(str, window))} voxels "
            f"({first_line(error)}): give the in_channels and roi_size that it was exported for."
        ) from error
    if tuple(logits.shape) != (1, num_classes, *window):
        raise BundleError(
            f"{path} gives {logits.shape[1]} classes of {' x '.join(map(str, logits.shape[2:]))} voxels, but "
            f"label_names has {num_classes} and the window {' x '.join(map(str, window))}: give the dataset's file "
            "that it was trained with."
        )


def _with_weights(path: Path, network: nn.Module) -> nn.Module:
    require_weights(path, network, hint=TRAIN_FIRST)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
