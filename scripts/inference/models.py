# SPDX-License-Identifier: Apache-2.0
"""Load trained networks from files: weights, TorchScript, torch.export and ONNX."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.weights import (
    CASES,
    NETWORK,
    RUN,
    build_network,
    preprocessing_record,
    read_weights,
    record_differences,
    record_of,
)
from scripts.errors import UserError, first_line
from scripts.files import require_file
from scripts.training.precision import place

logger = logging.getLogger("inference")

TRAIN_FIRST = "train first, or give its folder with --ckpt_dir"


def load_weights(
    path: str | Path,
    network: nn.Module,
    dataset: DatasetSpec | None = None,
    hint: str = TRAIN_FIRST,
    strict: bool = False,
) -> nn.Module:
    """Load a network from a weights file after checking that it fits. The file is read once, with `weights_only`.

    A file that records its network (`scripts/data/weights.py`) needs no config file of the network.

    A warning is logged if the model was trained with different preprocessing than that of `dataset`.

    Args:
        path: file with a state dict, such as `models/model.pt`.
        network: used for a file that does not record its network. It receives the weights if all of them fit;
            otherwise it is not changed.
        dataset: the dataset block of this configuration; `None` skips the comparison of the preprocessing.
        hint: what to do if the file does not exist.
        strict: whether another number of channels or classes, another voxel size or another intensity transform is an
            error and not only a warning. Other names of the classes and another window never are.

    Returns:
        The network in evaluation mode.

    Raises:
        UserError: if the file is missing or damaged, or does not fit the network. The message names the file and the
            first weight that is missing, unexpected, of another shape or not finite. If `strict`, also for another
            preprocessing.
    """
    return _weights_and_records(path, network, dataset, hint, strict)[0]


def _weights_and_records(
    path: str | Path, network: nn.Module, dataset: DatasetSpec | None, hint: str, strict: bool = False
) -> tuple[nn.Module, dict[str, dict[str, Any] | None]]:
    """Return the network of `load_weights`, and the file's records `RUN` and `CASES`, `None` where it has none."""
    state = read_weights(path, hint)
    record = record_of(state, NETWORK)
    if record is not None:
        try:
            network = build_network(record)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} describes an unknown network ({first_line(error)}): use its version of the bundle."
            ) from error
    mistake = first_mistake(state, network)
    if mistake:
        raise UserError(
            f"{path} does not fit the network: {mistake}. Give the dataset's and the method's "
            "config files that it was trained with, or another checkpoint."
        )
    _compare(path, record_of(state), dataset, strict)
    network.load_state_dict(state)
    return network.eval(), {entry: record_of(state, entry) for entry in (RUN, CASES)}


def _compare(
    path: str | Path, trained: Mapping[str, Any] | None, dataset: DatasetSpec | None, strict: bool = False
) -> None:
    """Warn, or raise an error, if a model was trained with another preprocessing than that of a dataset block."""
    if dataset is None or trained is None:
        return
    different = record_differences(trained, preprocessing_record(dataset))
    if not different:
        return
    message = (
        f"{path} was trained with another preprocessing than this configuration ({'; '.join(different)}), so its "
        "labels will be wrong: give the dataset that it was trained on (--dataset, or its config file last in "
        "--config_file)."
    )
    renamed = len(trained.get("label_names", ())) == len(dataset.label_names)
    minor = ("roi_size", "label_names") if renamed else ("roi_size",)
    if strict and not all(each.startswith(minor) for each in different):
        raise UserError(message)
    logger.warning(message)


def first_mistake(state: object, network: nn.Module) -> str | None:
    """Return the first reason why a loaded object does not fit a network, or `None` if it fits."""
    wanted = network.state_dict()
    if not isinstance(state, Mapping) or not any(key in wanted for key in state):
        return "it contains none of the network's weights"
    for key, value in wanted.items():
        if key not in state:
            return f"{key} is missing"
        if not isinstance(state[key], torch.Tensor) or state[key].shape != value.shape:
            found = tuple(getattr(state[key], "shape", ()))
            return f"{key} has shape {found}, not {tuple(value.shape)}"
        if not bool(torch.isfinite(state[key]).all()):
            return f"{key} is not finite"
    return next((f"unexpected key {key}" for key in state if key not in wanted), None)


class InferenceNetwork(nn.Module):
    """A network that runs under autocast and returns float32 logits.

    Args:
        network: maps windows `(B, C, D, H, W)` to logits.
        dtype: type for autocast, or `None` for fp32.
        records: records in the model file, by `RUN` and `CASES` of `scripts/data/weights.py`.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype | None = None, records: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network, self.dtype, self.records = network, dtype, dict(records or {})

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, D, H, W)`, float32."""
        with torch.autocast(windows.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.network(windows).float()


class OnnxNetwork:
    """Map windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)` with ONNX Runtime.

    A file with a fixed batch size (exported without dynamic axes) gets batches of that size: the last batch is padded
    with zeros, and the results of the padding are dropped.

    Args:
        path: `.onnx` file with one input, whose first output is the logits.
        device: device to run on. A GPU is used only if the installed ONNX Runtime has a provider for it.

    Raises:
        UserError: if ONNX Runtime is not installed, or cannot read the file.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        runtime = _runtime(path)
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise UserError(f"{path} cannot be read as an ONNX model: export it again.") from error
        entry = self.session.get_inputs()[0]
        self.input_name, batch = entry.name, entry.shape[0]
        self.batch_size = batch if isinstance(batch, int) and batch > 0 else None  # a dynamic axis is a name or None

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, D, H, W)`, float32, on the device of `windows`."""
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


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """Return finite logarithms of probabilities. Log 0 would be -inf, which no overlapping window could outweigh."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks.

    Args:
        networks: each maps windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`.
    """

    def __init__(self, networks: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        super().__init__()
        self.networks = list(networks)
        self.records = getattr(self.networks[0], "records", {})

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logarithms of the mean probabilities, float32."""
        return log_probabilities(torch.stack([n(windows).float().softmax(dim=1) for n in self.networks]).mean(dim=0))


Network = Callable[[torch.Tensor], torch.Tensor]
"""Maps windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`."""

EXPORTED_RECORD = "preprocessing.json"
"""Extra file in `model.ts` and `model.pt2` that holds the preprocessing record of the weights."""

MODEL_ENDINGS = (".pt", ".ts", ".pt2", ".onnx")


def model_files(directory: str | Path, checkpoint: str | Sequence[str]) -> Path | list[Path]:
    """Return the file that the option `checkpoint` names, or the files of an ensemble.

    Args:
        directory: folder of relative paths.
        checkpoint: path of a file, or a list of paths.
    """
    if isinstance(checkpoint, str):
        return Path(directory, checkpoint)
    return [Path(directory, name) for name in checkpoint]


def load_model(
    path: str | Path | Sequence[str | Path],
    network_def: nn.Module,
    device: torch.device | str,
    dataset: DatasetSpec | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """Load the network in a file, in evaluation mode.

    Args:
        path: `model.pt` (weights), `model.ts` (TorchScript), `model.pt2` (`torch.export`) or `model.onnx`; several
            files form an ensemble.
        network_def: receives the weights of a `.pt` file that does not record its network; the other formats contain
            the network.
        device: device of the network.
        dataset: the dataset block of this configuration; `load_weights` compares it with the record of a `.pt` file.
        dtype: type for autocast of a `.pt` file, or `None` for fp32. The other formats compute in fp32.

    Raises:
        UserError: if the file is missing, damaged or of another format, or does not fit `network_def`.
    """
    if not isinstance(path, str | Path):
        return Ensemble([load_model(each, deepcopy(network_def), device, dataset, dtype) for each in path])
    path = Path(path)
    require_file(path, TRAIN_FIRST)
    # `place` converts weights to channels-last layout, in which torch's fp32 norms round more coarsely. Probabilities
    # then differ by less than 1e-4, and labels only where two classes are equally probable
    # (tests/inference/test_models.py).
    extra = {EXPORTED_RECORD: ""}
    loaders = {
        ".pt": lambda: _inference_network(path, network_def, device, dataset, dtype),
        ".ts": lambda: torch.jit.load(path, map_location=device, _extra_files=extra).eval(),
        # the method, because the module refuses train and eval
        ".pt2": lambda: torch.export.load(path, extra_files=extra).module().to(device).forward,
        ".onnx": lambda: OnnxNetwork(path, device),
    }
    if path.suffix not in loaders:
        raise UserError(f"{path} is not a model file: checkpoint must end in {', '.join(MODEL_ENDINGS)}.")
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but MONAI still exports it.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = loaders[path.suffix]()
        if extra[EXPORTED_RECORD]:
            _compare(path, json.loads(extra[EXPORTED_RECORD]), dataset)
        return network
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as a model ({first_line(error)}): replace it.") from error


def _inference_network(
    path: Path,
    network_def: nn.Module,
    device: torch.device | str,
    dataset: DatasetSpec | None,
    dtype: torch.dtype | None,
) -> InferenceNetwork:
    network, records = _weights_and_records(path, network_def, dataset, TRAIN_FIRST)
    return InferenceNetwork(place(network, device), dtype, records).eval()


def check_model(
    network: Network, path: str | Path | Sequence[str | Path], in_channels: int, num_classes: int, window: Sequence[int]
) -> None:
    """Run the network on one window of zeros, so that a wrong model fails once instead of for every case.

    Args:
        network: a network that accepts windows on the CPU.
        path: file or files of the network, for the error message.
        in_channels: number of image channels.
        num_classes: number of classes K.
        window: sides of a window in voxels.

    Raises:
        UserError: if the network fails on such a window, or its output does not have shape `(1, K, *window)`.
    """
    path = path if isinstance(path, str | Path) else ", ".join(map(str, path))
    try:
        logits = network(torch.zeros(1, in_channels, *window))
    except Exception as error:
        raise UserError(
            f"{path} cannot be run on windows of {in_channels} channel(s) and {' x '.join(map(str, window))} voxels "
            f"({first_line(error)}): set in_channels and roi_size to the values it was exported for."
        ) from error
    if tuple(logits.shape) != (1, num_classes, *window):
        raise UserError(
            f"{path} outputs {logits.shape[1]} classes of {' x '.join(map(str, logits.shape[2:]))} voxels, but "
            f"label_names has {num_classes} names and the window is {' x '.join(map(str, window))}: give the config "
            "file of the dataset it was trained on."
        )
