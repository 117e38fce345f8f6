# SPDX-License-Identifier: Apache-2.0
"""Trained networks from files: weights, TorchScript, torch.export and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from scripts.data.preprocessing_record import record_differences, record_of
from scripts.errors import UserError, first_line
from scripts.files import require_file

logger = logging.getLogger("inference")

TRAIN_FIRST = "train first, or name its folder by --ckpt_dir"


def load_weights(
    path: str | Path,
    network: nn.Module,
    record: Mapping[str, Any] | None = None,
    hint: str = TRAIN_FIRST,
) -> nn.Module:
    """Load a weights file into a network, after checking that it fits; the file is read once, with `weights_only`.

    A warning is logged if the file was trained with another preprocessing than `record` says.

    Args:
        path: of a state dict, such as `models/model.pt`.
        network: takes the weights if all of them fit, else stays as it is.
        record: preprocessing of this configuration (`scripts.data.preprocessing_record`); `None` compares nothing.
        hint: what to do if the file does not exist.

    Returns:
        `network` in evaluation mode.

    Raises:
        UserError: naming the file, and the first weight that is missing, unexpected, of another shape or not finite.
    """
    require_file(path, hint)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as weights ({_reason(error)}): replace it.") from error
    mistake = first_mistake(state, network)
    if mistake:
        raise UserError(
            f"{path} does not fit the network of the config files: {mistake}; give the dataset's and the method's "
            "config files that it was trained with, or another checkpoint."
        )
    different = [] if record is None else record_differences(record_of(state), record)
    if different:
        logger.warning(
            f"{path} was trained with another preprocessing than this configuration has ({'; '.join(different)}), so "
            "its labels will be wrong: put the dataset's config file of its training behind the others in "
            "--config_file."
        )
    network.load_state_dict(state)
    return network.eval()


def first_mistake(state: object, network: nn.Module) -> str | None:
    """Why a loaded object cannot be the weights of a network: the first mistake, or `None` if it fits."""
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
    return next((f"unexpected key {key}" for key in state if key not in wanted), None)


def _reason(error: Exception) -> str:
    # torch's own message recommends `weights_only=False`, which would let the file run code.
    return "it holds more than weights" if "weights_only" in str(error) else first_line(error)


class OnnxNetwork:
    """Windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)` through ONNX Runtime.

    A file with a fixed batch size (exported without dynamic axes) gets batches of that size: the last one is padded
    with zeros, and their results are dropped.

    Args:
        path: the `.onnx` file, with one input and the logits as first output.
        device: a GPU is used if the installed ONNX Runtime has its provider, otherwise the CPU.

    Raises:
        UserError: if ONNX Runtime is not installed, or cannot read the file.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        runtime = _runtime(path)
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class but this
            raise UserError(f"{path} cannot be read as an ONNX model: export it again.") from error
        entry = self.session.get_inputs()[0]
        self.input_name, batch = entry.name, entry.shape[0]
        self.batch_size = batch if isinstance(batch, int) and batch > 0 else None  # a dynamic axis is a name or None

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits, float32, on the device of `windows`."""
        size = self.batch_size or len(windows)
        parts = [self._run(part, size) for part in windows.float().cpu().split(size)]
        return torch.cat(parts).to(windows.device)

    def _run(self, part: torch.Tensor, size: int) -> torch.Tensor:
        filling = part.new_zeros(size - len(part), *part.shape[1:])
        inputs = torch.cat([part, filling]).contiguous().numpy()
        return torch.from_numpy(self.session.run(None, {self.input_name: inputs})[0])[: len(part)]


def _runtime(path: str | Path) -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path} needs ONNX Runtime, which is not installed: install onnxruntime, or give --checkpoint model.pt."
        ) from error
    return onnxruntime


Network = Callable[[torch.Tensor], torch.Tensor]
"""Windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`."""

MODEL_ENDINGS = (".pt", ".ts", ".pt2", ".onnx")


def load_model(
    path: str | Path,
    network_def: nn.Module,
    device: torch.device | str,
    record: Mapping[str, Any] | None = None,
) -> Network:
    """The network in a file, in evaluation mode.

    Args:
        path: `model.pt` (weights of `network_def`), `model.ts` (TorchScript), `model.pt2` (`torch.export`) or
            `model.onnx`.
        network_def: takes the weights of a `.pt` file; other files bring their network along.
        device: where it computes.
        record: preprocessing of this configuration, which `load_weights` compares with that of a `.pt` file.

    Raises:
        UserError: for a file that is missing, damaged, of another kind, or does not fit `network_def`.
    """
    path = Path(path)
    require_file(path, TRAIN_FIRST)
    loaders = {
        ".pt": lambda: load_weights(path, network_def, record).to(device),
        ".ts": lambda: torch.jit.load(path, map_location=device).eval(),
        ".pt2": lambda: torch.export.load(path).module().to(device),
        ".onnx": lambda: OnnxNetwork(path, device),
    }
    if path.suffix not in loaders:
        raise UserError(f"{path} is not a model file: checkpoint must end in {', '.join(MODEL_ENDINGS)}.")
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated and still what MONAI exports.
            warnings.simplefilter("ignore", DeprecationWarning)
            return loaders[path.suffix]()
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as a model ({first_line(error)}): replace it.") from error


def check_model(network: Network, path: str | Path, in_channels: int, num_classes: int, window: Sequence[int]) -> None:
    """Run the network on one empty window, so that a wrong model fails once and not for every case.

    Args:
        network: takes windows on the CPU.
        path: its file, for the message.
        in_channels: image channels.
        num_classes: K.
        window: sides of a window, voxels.

    Raises:
        UserError: if the network cannot be called with such a window, or has not `num_classes` outputs.
    """
    try:
        logits = network(torch.zeros(1, in_channels, *window))
    except Exception as error:
        raise UserError(
            f"{path} cannot be run on windows of {in_channels} channel(s) and {' x '.join(map(str, window))} voxels "
            f"({first_line(error)}): give the in_channels and roi_size that it was exported for."
        ) from error
    if tuple(logits.shape) != (1, num_classes, *window):
        raise UserError(
            f"{path} gives {logits.shape[1]} classes of {' x '.join(map(str, logits.shape[2:]))} voxels, but "
            f"label_names has {num_classes} and the window {' x '.join(map(str, window))}: give the dataset's file "
            "that it was trained with."
        )
