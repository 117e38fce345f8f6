# SPDX-License-Identifier: Apache-2.0
"""A weights file carries the records of its preprocessing and of its network."""

from __future__ import annotations

import json

import pytest
import torch
from monai.transforms import Compose, Lambdad, NormalizeIntensityd, ScaleIntensityRanged
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.weights import (
    NETWORK,
    build_network,
    network_config,
    network_record,
    preprocessing_record,
    record_differences,
    record_of,
    save_weights,
)
from scripts.errors import UserError
from scripts.inference.models import load_model, load_weights
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet

NAMES = ["background", "liver"]


def window(low: float) -> ScaleIntensityRanged:
    return ScaleIntensityRanged("image", a_min=low, a_max=160, b_min=-1.0, b_max=1.0, clip=True)


def spec(in_channels=1, label_names=NAMES, spacing=(2.0, 2.0, 2.5), intensity=None, roi_size=(32, 32, 32)):
    intensity = intensity or NormalizeIntensityd("image", channel_wise=True)
    return DatasetSpec(
        "", in_channels=in_channels, label_names=label_names, spacing=spacing, intensity=intensity, roi_size=roi_size
    )


def record(*args, **changes):
    return preprocessing_record(spec(*args, **changes))


def test_a_record_is_plain_and_survives_json() -> None:
    assert json.loads(json.dumps(record())) == record()
    assert record()["spacing"] == [2.0, 2.0, 2.5] and record()["label_names"] == NAMES


def test_the_same_transform_written_in_another_way_has_the_same_record() -> None:
    nested = Compose([Compose([NormalizeIntensityd("image", channel_wise=True)])])
    assert record_differences(record(), record(intensity=nested)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spacing": (1.0, 2.0, 2.5)}, ["spacing", "[2.0, 2.0, 2.5]", "[1.0, 2.0, 2.5]"]),
        ({"label_names": ["background", "spleen"]}, ["label_names", "liver", "spleen"]),
        ({"in_channels": 2}, ["in_channels"]),
        ({"roi_size": (32, 32, 48)}, ["roi_size", "[32, 32, 32]", "[32, 32, 48]"]),
        ({"intensity": window(-60)}, ["intensity"]),
    ],
)
def test_every_setting_that_differs_is_named(change, named) -> None:
    (found,) = record_differences(record(), record(**change))
    assert all(word in found for word in named)


def test_another_intensity_window_is_described_by_its_effect_on_a_value() -> None:
    (found,) = record_differences(record(intensity=window(-60)), record(intensity=window(-100)))
    # the lowest test value inside either window is -50: 2 * 10 / 220 - 1 and 2 * 50 / 260 - 1
    assert "-50" in found and "-0.909" in found and "-0.615" in found


def test_normalisation_per_channel_differs_from_joint_normalisation() -> None:
    together = NormalizeIntensityd("image", channel_wise=False)
    assert record_differences(record(2), record(2, intensity=together))
    assert record_differences(record(1), record(1, intensity=together)) == []


def test_a_difference_of_rounding_is_ignored() -> None:
    other = record()
    other["intensity"] = [[value * (1 + 1e-5) for value in channel] for channel in other["intensity"]]
    assert record_differences(record(), other) == []


def test_values_that_are_not_recorded_are_not_compared() -> None:
    needs_more = Lambdad(["image", "mask"], func=lambda volume: volume)
    assert record(intensity=needs_more)["intensity"] is None
    assert record_differences(record(intensity=needs_more), record()) == []
    assert preprocessing_record(DatasetSpec(""))["intensity"] is None
    assert record_differences(None, record()) == []
    assert record_differences({}, record()) == []


# ---------------------------------------------------------------- in a weights file


def load(path):
    return torch.load(path, weights_only=True)


def test_the_record_adds_no_key_to_the_state_dict(tmp_path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    save_weights(network, tmp_path / "model.pt", spec())
    loaded = load(tmp_path / "model.pt")
    assert list(loaded) == list(network.state_dict())
    assert record_of(loaded) == record()


def test_a_network_loads_it_strictly_and_knows_its_versions(tmp_path) -> None:
    """BatchNorm reads its version from the same place: without it, it would ask for older keys."""
    network, other = nn.Sequential(nn.BatchNorm3d(2)), nn.Sequential(nn.BatchNorm3d(2))
    network[0].num_batches_tracked += 7
    save_weights(network, tmp_path / "model.pt", spec())
    loaded = load(tmp_path / "model.pt")
    assert loaded._metadata["0"] == network.state_dict()._metadata["0"]
    other.load_state_dict(loaded, strict=True)
    assert other[0].num_batches_tracked == 7


def test_saving_does_not_change_the_network_in_training(tmp_path) -> None:
    network = nn.Conv3d(1, 1, 1)
    state = network.state_dict()
    save_weights(network, tmp_path / "model.pt", spec())
    assert record_of(state) is None
    assert record_of(network.state_dict()) is None


@pytest.mark.parametrize("entry", [None, [{"transform": "Spacingd"}]], ids=["no record", "an older version's list"])
def test_a_file_of_another_origin_has_no_record(entry, tmp_path) -> None:
    state = nn.Conv3d(1, 1, 1).state_dict()
    if entry is not None:
        state._metadata[""]["preprocessing"] = entry
    torch.save(state, tmp_path / "plain.pt")
    assert record_of(load(tmp_path / "plain.pt")) is None


NETWORKS = {
    "V-Net": lambda: VNet(2, 3, 4, norm=("group", {"num_groups": 2}), dropout_prob=0.1),
    "residual, its own strides": lambda: ResidualUNet(
        1, 2, (8, 16, 16), (1, 1, 1), (2, 2, 1), [2, (2, 2, 1)], norm="batch"
    ),
    "residual, defaults": lambda: ResidualUNet(out_channels=3, widths=[8, 8], blocks=[1, 1]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_again_from_json(name) -> None:
    network = NETWORKS[name]()
    again = build_network(json.loads(json.dumps(network_record(network))))
    assert type(again) is type(network)
    again.load_state_dict(network.state_dict())  # strict: the same layers of the same shapes
    image = torch.rand(1, 2 if name == "V-Net" else 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), network.eval()(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weights_file_needs_no_configuration_of_its_network(name, tmp_path) -> None:
    network = NETWORKS[name]().eval()
    save_weights(network, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", nn.Conv3d(1, 1, 1), "cpu")
    image = torch.rand(1, 2 if name == "V-Net" else 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), network(image))


def test_a_config_block_names_class_and_arguments() -> None:
    block = network_config(network_record(VNet(1, 2, base_filters=4)))
    assert block["_target_"] == "scripts.networks.vnet.VNet" and block["base_filters"] == 4


def test_networks_of_other_libraries_are_not_recorded(tmp_path) -> None:
    class VNet(nn.Conv3d):  # of the same name
        pass

    assert network_record(nn.Conv3d(1, 1, 1)) is None
    save_weights(VNet(1, 1, 1), tmp_path / "model.pt")
    assert record_of(torch.load(tmp_path / "model.pt", weights_only=True), NETWORK) is None


@pytest.mark.parametrize(
    "record",
    [
        {"class": "subprocess.Popen", "arguments": {"args": "touch ran"}},
        {"class": "VNet", "arguments": {"depth": 7}},
        {"class": "VNet", "arguments": {"base_filters": 0}},
        {"arguments": {}},
    ],
    ids=["another class", "an unknown argument", "a wrong argument", "no class"],
)
def test_a_record_that_cannot_be_built_is_refused(record, tmp_path) -> None:
    network = VNet(1, 2, base_filters=2)
    state = network.state_dict()
    state._metadata[""][NETWORK] = record
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        load_weights(tmp_path / "model.pt", network)
