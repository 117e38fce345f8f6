# SPDX-License-Identifier: Apache-2.0
"""Every kind of model file gives the same network; what does not fit is told in one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.errors import UserError
from scripts.inference.models import check_model, load_model

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
def test_each_file_gives_the_network_as_it_is_used(name, folder) -> None:
    fresh = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Dropout(0.5))
    images = torch.randn(3, 1, *WINDOW)
    with torch.no_grad():
        loaded = load_model(folder / name, fresh, "cpu")
        torch.testing.assert_close(loaded(images), network().eval()(images))
    check_model(loaded, folder / name, 1, 3, WINDOW)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing.pt", "nothing.pt does not exist: train first"),
        ("model.h5", "model.h5 is no model file: checkpoint must end in .pt, .ts, .pt2, .onnx"),
        ("damaged.pt", "damaged.pt cannot be read as weights"),
        ("damaged.ts", "damaged.ts cannot be read as a model"),
        ("damaged.pt2", "damaged.pt2 cannot be read as a model"),
        ("list.pt", "list.pt does not fit the network of the config files"),
    ],
)
def test_a_file_that_is_no_model_is_told_in_one_sentence(name, told, folder) -> None:
    for other in ("model.h5", "damaged.pt", "damaged.ts", "damaged.pt2"):
        (folder / other).write_bytes(b"PK no model")
    torch.save([1, 2], folder / "list.pt")
    with pytest.raises(UserError) as caught:
        load_model(folder / name, network(), "cpu")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(folder) -> None:
    with pytest.raises(UserError, match=r"model\.pt does not fit the network of the config files"):
        load_model(folder / "model.pt", network(classes=2), "cpu")


def test_another_number_of_channels_or_classes_is_told_before_any_case(folder) -> None:
    loaded = load_model(folder / "model.ts", network(), "cpu")
    with pytest.raises(UserError, match=r"cannot be run on windows of 2 channel\(s\) and 4 x 6 x 8 voxels"):
        check_model(loaded, "model.ts", 2, 3, WINDOW)
    with pytest.raises(UserError, match=r"gives 3 classes of 4 x 6 x 8 voxels, but label_names has 4"):
        check_model(loaded, "model.ts", 1, 4, WINDOW)
