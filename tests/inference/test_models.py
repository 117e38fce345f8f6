# SPDX-License-Identifier: Apache-2.0
"""Loading networks: every format gives the same network, and a file that does not fit is named in the error."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scripts.data.spec import DatasetSpec
from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.inference.models import Ensemble, OnnxNetwork, check_model, load_model, load_weights, model_files
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

# ---------------------------------------------------------------- weights


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def refusal(path: Path, network: nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(path, network)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_loaded_and_the_network_is_in_evaluation_mode(tmp_path) -> None:
    torch.manual_seed(0)
    saved, fresh = small_network(), small_network()
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    loaded = load_weights(tmp_path / "model.pt", fresh)
    assert loaded is fresh and not fresh.training
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in saved.state_dict().items())


def test_the_error_of_a_missing_file_has_the_hint(tmp_path) -> None:
    with pytest.raises(UserError, match=r"model\.pt.*the hint"):
        load_weights(tmp_path / "model.pt", small_network(), hint="the hint")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("0.bias"), "0.bias"),
        (lambda state: state.update({"0.weight": torch.zeros(3, 1)}), "(3, 1)"),
        (lambda state: state.update({"0.weight": 5}), "0.weight"),
        (lambda state: state["0.weight"].fill_(torch.nan), "0.weight"),
        (lambda state: state.update({"head": torch.zeros(1)}), "head"),
        (lambda state: state.clear(), "model.pt"),
    ],
)
def test_the_first_weight_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change, named) -> None:
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    change(state)
    torch.save(state, tmp_path / "model.pt")
    assert named in refusal(tmp_path / "model.pt", network)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


def test_other_objects_and_damaged_files_are_refused(tmp_path) -> None:
    path = tmp_path / "model.pt"
    torch.save([1, 2], path)
    refusal(path, small_network())
    torch.save(small_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])
    refusal(path, small_network())


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_file_does_not_run(tmp_path, write) -> None:
    write({"0.bias": Hostile(tmp_path / "ran")}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt", small_network())
    assert not (tmp_path / "ran").exists()
    assert "weights_only=False" not in message


FINE = DatasetSpec("", spacing=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("trained", "here", "named"),
    [
        (FINE, DatasetSpec("", spacing=[1.0, 1.0, 2.0]), "spacing"),
        (FINE, DatasetSpec("", spacing=[1.0, 1.0, 1.0], roi_size=[96, 96, 64]), "roi_size"),
        (FINE, DatasetSpec("elsewhere", spacing=[1.0, 1.0, 1.0]), None),
        (None, FINE, None),
        (FINE, None, None),
    ],
    ids=["another spacing", "another window", "the same", "a file without a record", "nothing to compare with"],
)
def test_only_a_different_preprocessing_warns(trained, here, named, tmp_path, caplog) -> None:
    save_weights(small_network(), tmp_path / "model.pt", trained)
    with caplog.at_level(logging.WARNING, "inference"):
        load_weights(tmp_path / "model.pt", small_network(), here)
    if named is None:
        assert caplog.records == []
    else:
        assert "model.pt" in caplog.text and named in caplog.text


# ---------------------------------------------------------------- all formats

WINDOW = (4, 6, 8)


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, classes, 1), nn.Dropout(0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.save(network().state_dict(), folder / "model.pt")
    image = torch.zeros(2, 1, *WINDOW)
    torch.jit.trace(network().eval(), image).save(folder / "model.ts")
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(
        torch.export.export(network().eval(), (image,), dynamic_shapes=({0: batch},)), folder / "model.pt2"
    )
    return folder


@pytest.mark.parametrize("name", ["model.pt", "model.ts", "model.pt2"])
def test_each_format_gives_the_network_in_evaluation_mode(name, folder) -> None:
    fresh = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Dropout(0.5))
    images = torch.randn(3, 1, *WINDOW)
    with torch.no_grad():
        loaded = load_model(folder / name, fresh, "cpu")
        torch.testing.assert_close(loaded(images), network().eval()(images))
    check_model(loaded, folder / name, 1, 3, WINDOW)


@pytest.mark.parametrize("name", ["nothing.pt", "model.h5", "damaged.pt", "damaged.ts", "damaged.pt2", "list.pt"])
def test_a_file_that_is_not_a_model_is_refused_by_name(name, folder) -> None:
    for other in ("model.h5", "damaged.pt", "damaged.ts", "damaged.pt2"):
        (folder / other).write_bytes(b"PK no model")
    torch.save([1, 2], folder / "list.pt")
    with pytest.raises(UserError) as caught:
        load_model(folder / name, network(), "cpu")
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(folder) -> None:
    with pytest.raises(UserError, match=r"model\.pt"):
        load_model(folder / "model.pt", network(classes=2), "cpu")


def test_a_wrong_number_of_channels_or_classes_is_refused_before_any_case(folder) -> None:
    loaded = load_model(folder / "model.ts", network(), "cpu")
    with pytest.raises(UserError, match=r"model\.ts.*in_channels"):
        check_model(loaded, "model.ts", 2, 3, WINDOW)
    with pytest.raises(UserError, match=r"model\.ts.*label_names"):
        check_model(loaded, "model.ts", 1, 4, WINDOW)


# ---------------------------------------------------------------- memory layout and number type


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"V-Net, {norm}": partial(VNet, 1, 3, base_filters=4, norm=norm) for norm in ("instance", "batch", "group")},
    "V-Net without norm": partial(VNet, 1, 3, base_filters=4, norm=None),
    "residual U-Net": partial(ResidualUNet, 1, 3, widths=(8, 16), blocks=(1, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_is_channels_last_on_the_cpu_and_its_logits_stay_the_same(name, tmp_path) -> None:
    """In fp64, where a different rounding does not show; the windows have a large mean."""
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", NETWORKS[name]().double(), "cpu")
    assert all(
        layer.weight.is_contiguous(memory_format=torch.channels_last_3d)
        for layer in loaded.modules()
        if isinstance(layer, nn.Conv3d)
    )
    windows = 100 + torch.randn(3, 1, 32, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(windows), network(windows).float())


INCLUDED = partial(ResidualUNet, 1, 3, (16, 32, 64, 128), stem_stride=1, norm="batch")
"""The network of models/model.pt."""


@pytest.fixture
def image(shipped_weights) -> torch.Tensor:
    """Noise, changed until the included model sees both structures in it, `(1, 1, 16, 24, 16)`."""
    network = load_weights(shipped_weights, INCLUDED()).requires_grad_(False)
    wanted = torch.zeros(1, 16, 24, 16, dtype=torch.long)
    wanted[:, 4:12, 4:12, 4:12], wanted[:, 4:12, 12:20, 4:12] = 1, 2
    noise = torch.randn(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=0.3)
    for _ in range(12):
        optimizer.zero_grad()
        cross_entropy(network(noise), wanted).backward()
        optimizer.step()
    return noise.detach()


@torch.no_grad()
def included_model(weights: Path, image: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    logits = load_model(weights, INCLUDED(), "cpu", dtype=dtype)(image)
    assert logits.dtype == torch.float32
    return logits


def test_the_layout_hardly_changes_probabilities_of_the_included_model(shipped_weights, image) -> None:
    with torch.no_grad():
        other = load_weights(shipped_weights, INCLUDED())(image)
    ours = included_model(shipped_weights, image)
    torch.testing.assert_close(ours.softmax(1), other.softmax(1), rtol=0, atol=1e-4)
    assert (ours.argmax(1) != other.argmax(1)).sum() <= 3


def test_bf16_labels_are_those_of_fp32_for_the_included_model(shipped_weights, image) -> None:
    """torch emulates bf16 where the hardware has none."""
    labels = [included_model(shipped_weights, image, dtype).argmax(1) for dtype in (None, torch.bfloat16)]
    assert labels[0].flatten().bincount(minlength=3).min() > 200
    assert (labels[0] == labels[1]).float().mean() > 0.99


# ---------------------------------------------------------------- ONNX, with a stand-in for ONNX Runtime


@pytest.fixture
def runtime(monkeypatch):
    """A stand-in for `onnxruntime` whose model doubles its input; `batch` is the first axis as declared in the file."""
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


def test_a_file_with_a_dynamic_batch_size_gets_all_windows_at_once(runtime) -> None:
    logits = OnnxNetwork("model.onnx")(WINDOWS)
    assert runtime.calls == [5]
    torch.testing.assert_close(logits, torch.cat([WINDOWS, 2 * WINDOWS], dim=1).float())


def test_a_file_with_a_fixed_batch_size_gets_padded_batches(runtime) -> None:
    runtime.batch = 2
    logits = OnnxNetwork("model.onnx")(WINDOWS)
    assert runtime.calls == [2, 2, 2]
    torch.testing.assert_close(logits, torch.cat([WINDOWS, 2 * WINDOWS], dim=1).float())


def test_the_gpu_provider_is_requested_for_a_gpu_only(runtime) -> None:
    OnnxNetwork("model.onnx", "cpu")
    assert runtime.providers == ["CPUExecutionProvider"]
    OnnxNetwork("model.onnx", "cuda:0")
    assert runtime.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_damaged_file_and_a_missing_runtime_are_user_errors(runtime, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"damaged\.onnx"):
        OnnxNetwork("damaged.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"model\.onnx.*onnxruntime"):
        OnnxNetwork("model.onnx")


# ---------------------------------------------------------------- ensembles


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path) -> None:
    members = [nn.Conv3d(1, 3, 1) for _ in range(2)]
    for name, member in zip("ab", members, strict=True):
        torch.save(member.state_dict(), tmp_path / f"{name}.pt")
    files = model_files(tmp_path, ["a.pt", str(tmp_path / "b.pt")])
    images = torch.randn(2, 1, *WINDOW)
    with torch.no_grad():
        found = load_model(files, nn.Conv3d(1, 3, 1), "cpu")(images).softmax(dim=1)
        wanted = sum(member(images).softmax(dim=1) for member in members) / 2
    torch.testing.assert_close(found, wanted)
    check_model(load_model(files, nn.Conv3d(1, 3, 1), "cpu"), files, 1, 3, WINDOW)
    with pytest.raises(UserError, match=r"a\.pt, .*b\.pt.*label_names"):
        check_model(load_model(files, nn.Conv3d(1, 3, 1), "cpu"), files, 1, 2, WINDOW)


def test_a_probability_of_0_stays_finite() -> None:
    certain = Ensemble([lambda windows: torch.tensor([1000.0, 0.0]).reshape(1, 2, 1, 1, 1)])
    assert certain(torch.zeros(1, 1, 1, 1, 1)).isfinite().all()
