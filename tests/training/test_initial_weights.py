# SPDX-License-Identifier: Apache-2.0
"""Given weights replace random ones where name, shape and classes agree, whatever program saved them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet
from scripts.training.initial_weights import best_fit, last_layer, with_initial_weights

ORGANS = DatasetSpec("scans", label_names=("background", "liver", "spleen"))
VESSELS = DatasetSpec("scans", label_names=("background", "artery", "vein"))


def network(classes: int = 3, **arguments: object) -> nn.Module:
    return ResidualUNet(out_channels=classes, widths=(8, 8), blocks=(1, 1), **arguments)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network of three organs, and its file."""
    torch.manual_seed(1)
    module = network()
    save_weights(module, tmp_path / "model.pt", ORGANS)
    return module, tmp_path / "model.pt"


def equal_keys(first: nn.Module, second: nn.Module) -> set[str]:
    states = first.state_dict(), second.state_dict()
    return {key for key in states[0] if torch.equal(states[0][key], states[1][key])}


def random_start(module: nn.Module) -> nn.Module:
    """Values that no initialisation has, so that an equal value was taken from the file."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def test_nothing_is_taken_without_a_file() -> None:
    module = random_start(network())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert with_initial_weights(module, None, ORGANS) is module
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_all_is_taken_if_the_classes_are_the_same(trained) -> None:
    module, file = trained
    started = with_initial_weights(random_start(network()), file, ORGANS)
    assert equal_keys(module, started) == set(module.state_dict())


def test_other_classes_leave_the_last_layer_out_even_if_there_are_as_many(trained) -> None:
    module, file = trained
    started = with_initial_weights(random_start(network()), file, VESSELS)
    assert set(module.state_dict()) - equal_keys(module, started) == {"output.weight", "output.bias"}


def test_another_number_of_classes_and_channels_leaves_out_what_has_another_shape(trained, caplog) -> None:
    module, file = trained
    caplog.set_level(logging.INFO)
    started = network(classes=2, in_channels=2)
    with_initial_weights(random_start(started), file, DatasetSpec("scans", in_channels=2, label_names=("a", "b")))
    theirs, ours = module.state_dict(), started.state_dict()
    left = {key for key in ours if theirs[key].shape != ours[key].shape or not torch.equal(theirs[key], ours[key])}
    assert left == {"stem.conv.weight", "head.conv.weight", "output.weight", "output.bias"}
    table = next(line for line in caplog.text.splitlines() if line.startswith("stem"))
    assert "stem.conv.weight" in table and "(8, 1, 3, 3, 3)" in table and "(8, 2, 3, 3, 3)" in table
    parameters = sum(value.numel() for value in ours.values())
    missing = sum(ours[key].numel() for key in left)
    total = next(line for line in caplog.text.splitlines() if line.startswith("all "))
    assert total.split()[1:] == [f"{parameters:,}", f"{parameters - missing:,}"]


def test_the_last_layer_is_that_of_the_logits() -> None:
    assert last_layer(VNet(out_channels=2, base_filters=2), 2) == "decoder.output.conv."
    # As many channels as classes in other layers too.
    assert last_layer(ResidualUNet(out_channels=8, widths=(8, 8), blocks=(1, 1), head_channels=8), 8) == "output."
    assert last_layer(SegResNet(out_channels=2, init_filters=8), 2) == "conv_final.2.conv."
    assert last_layer(nn.Linear(2, 2), 2) is None


@pytest.mark.parametrize("entry", ["state_dict", "network_weights", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_checkpoints_of_other_programs_are_read(entry: str, prefix: str, tmp_path) -> None:
    torch.manual_seed(2)
    module = network()
    state = {prefix + key: value for key, value in module.state_dict().items()}
    content = {
        entry: state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.5)], "epochs": np.int64(3)},  # as nnU-Net saves
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    started = with_initial_weights(random_start(network()), tmp_path / "checkpoint_final.pth", ORGANS)
    # Such a file does not say which classes it knows.
    assert set(state) - {prefix + key for key in equal_keys(module, started)} == {
        f"{prefix}output.weight",
        f"{prefix}output.bias",
    }


def test_an_encoder_alone_is_taken_under_its_name(trained, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    module, _ = trained
    torch.save(module.encoder.state_dict() | {"projection.weight": torch.zeros(4, 4)}, tmp_path / "encoder.pt")
    started = with_initial_weights(random_start(network()), tmp_path / "encoder.pt", ORGANS)
    assert equal_keys(module, started) == {f"encoder.{key}" for key in module.encoder.state_dict()}
    assert any(line.startswith("decoder") and "not in the file" in line for line in caplog.text.splitlines())
    assert "1 tensors of the file" in caplog.text


def test_the_best_of_several_state_dicts_is_used() -> None:
    state = network().state_dict()
    part = {key: torch.zeros_like(value) for key, value in state.items() if key.startswith("stem")}
    whole = {f"module.{key}": torch.ones_like(value) for key, value in state.items()}
    taken = best_fit({"part": part, "deeper": {"teacher": whole}}, state)
    assert taken.keys == set(state)
    assert all(bool((value == 1).all()) for value in taken.state.values())


def test_another_preprocessing_is_told(trained, caplog) -> None:
    caplog.set_level(logging.INFO)
    coarse = DatasetSpec("scans", label_names=VESSELS.label_names, spacing=(2.0, 2.0, 2.5))
    with_initial_weights(network(), trained[1], coarse)
    assert "spacing [1.0, 1.0, 1.0] in training, [2.0, 2.0, 2.5] now" in caplog.text
    assert "label_names" not in caplog.text


def test_a_file_of_another_network_is_refused_with_both_names(trained) -> None:
    started = random_start(VNet(out_channels=3, base_filters=2))
    before = {key: value.clone() for key, value in started.state_dict().items()}
    with pytest.raises(UserError) as caught:
        with_initial_weights(started, trained[1], ORGANS)
    assert all(text in str(caught.value) for text in (str(trained[1]), "ResidualUNet", "VNet", "base_filters 2"))
    assert all(torch.equal(value, before[key]) for key, value in started.state_dict().items())


def broken(folder: Path) -> Path:
    state = network().state_dict()
    state["stem.conv.weight"][0, 0, 0, 0, 0] = torch.nan
    torch.save(state, folder / "nan.pt")
    return folder / "nan.pt"


def with_code(folder: Path) -> Path:
    torch.save(OrderedDict(path=Path("/")), folder / "code.pt")
    return folder / "code.pt"


@pytest.mark.parametrize("make", [broken, with_code, lambda folder: folder / "none.pt"])
def test_a_useless_file_is_named(make, tmp_path) -> None:
    file = make(tmp_path)
    with pytest.raises(UserError, match=file.name):
        with_initial_weights(network(), file, ORGANS)


def test_training_starts_from_the_file_and_its_rate_from_near_zero(make_workflow, tmp_path) -> None:
    first = make_workflow("train.yaml", max_steps=1, ckpt_dir=str(tmp_path / "first"))
    first.run()
    file = tmp_path / "first/model.pt"
    second = make_workflow("train.yaml", max_steps=20, initial_weights=str(file), ckpt_dir=str(tmp_path / "second"))
    parser = second.parser
    network, teacher = parser.get_parsed_content("network"), parser.get_parsed_content("teacher")
    saved = torch.load(file, weights_only=True)
    for module in (network, teacher.module):
        assert all(torch.equal(value, saved[key]) for key, value in module.state_dict().items())
    handlers = parser.get_parsed_content("train::handlers")[0]
    curve = parser.get_parsed_content("learning_rate_curve")
    assert [handlers.learning_rate_curve(step) / curve(step) for step in (0, 1, 5)] == [0.5, 1.0, 1.0]
