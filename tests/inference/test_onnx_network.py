# SPDX-License-Identifier: Apache-2.0
"""A network in an ONNX file, through a session that answers as ONNX Runtime's does."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.errors import UserError
from scripts.inference.models import OnnxNetwork


@pytest.fixture
def runtime(monkeypatch):
    """A module `onnxruntime` whose model doubles its input; `batch` is what the file says of its first axis."""
    made = SimpleNamespace(batch="batch", calls=[], providers=[])

    class Session:
        def __init__(self, path, providers):
            made.providers = providers
            if "damaged" in path:
                raise RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF")

        def get_inputs(self):
            return [SimpleNamespace(name="image", shape=[made.batch, 1, 2, 2, 2])]

        def run(self, outputs, inputs):
            array = inputs["image"]
            assert isinstance(array, np.ndarray) and array.dtype == np.float32
            made.calls.append(array.shape[0])
            return [np.concatenate([array, 2 * array], axis=1)]

    module = SimpleNamespace(
        InferenceSession=Session, get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return made


WINDOWS = torch.arange(40, dtype=torch.float64).reshape(5, 1, 2, 2, 2)


def test_any_number_of_windows_goes_through_at_once_where_the_file_allows_it(runtime) -> None:
    logits = OnnxNetwork("model.onnx")(WINDOWS)
    assert runtime.calls == [5]
    torch.testing.assert_close(logits, torch.cat([WINDOWS, 2 * WINDOWS], dim=1).float())


def test_a_file_of_a_fixed_number_of_windows_is_filled_up(runtime) -> None:
    runtime.batch = 2
    logits = OnnxNetwork("model.onnx")(WINDOWS)
    assert runtime.calls == [2, 2, 2]
    torch.testing.assert_close(logits, torch.cat([WINDOWS, 2 * WINDOWS], dim=1).float())


def test_the_gpu_is_asked_for_only_where_it_is_wanted(runtime) -> None:
    OnnxNetwork("model.onnx", "cpu")
    assert runtime.providers == ["CPUExecutionProvider"]
    OnnxNetwork("model.onnx", "cuda:0")
    assert runtime.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_damaged_file_and_a_missing_runtime_are_told_in_one_sentence(runtime, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"damaged\.onnx cannot be read as an ONNX model"):
        OnnxNetwork("damaged.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"model\.onnx needs ONNX Runtime, which is not installed"):
        OnnxNetwork("model.onnx")
