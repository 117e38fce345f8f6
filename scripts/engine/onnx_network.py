# SPDX-License-Identifier: Apache-2.0
"""A network in an ONNX file, called like one of PyTorch."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch

from scripts.errors import BundleError


class OnnxNetwork:
    """Windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)` through ONNX Runtime.

    A file whose first axis has a fixed size (exported without dynamic axes) is fed so many windows at a time; missing
    ones are filled up with zeros, and what comes of those is dropped.

    Args:
        path: the `.onnx` file, with one input and the logits as first output.
        device: of a GPU, if the installed ONNX Runtime has its provider; else it computes on the CPU.

    Raises:
        BundleError: without ONNX Runtime, or for a file that it cannot read.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        runtime = _runtime(path)
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class but this
            raise BundleError(f"{path} cannot be read as an ONNX model: export it again.") from error
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
        raise BundleError(
            f"{path} needs ONNX Runtime, which is not installed: install onnxruntime, or give --checkpoint model.pt."
        ) from error
    return onnxruntime
