# SPDX-License-Identifier: Apache-2.0
"""A file of weights fits its network to the last key, or is told by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.errors import UserError
from scripts.inference.models import require_weights


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def refusal(path: Path, network: nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        require_weights(path, network, "train first")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_networks_own_weights_pass(network, tmp_path) -> None:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    require_weights(tmp_path / "model.pt", network, "train first")


def test_a_missing_file_is_told_with_the_way_out(network, tmp_path) -> None:
    assert "does not exist: train first" in refusal(tmp_path / "model.pt", network)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.bias"), "0.bias is missing"),
        (lambda state: state.update({"0.weight": torch.zeros(3, 1)}), r"0.weight has shape (3, 1), not (3, 2)"),
        (lambda state: state.update({"0.weight": 5}), "0.weight has shape (), not (3, 2)"),
        (lambda state: state["0.weight"].fill_(torch.nan), "0.weight is not finite"),
        (lambda state: state.update({"head": torch.zeros(1)}), "head is too many"),
        (lambda state: state.clear(), "none of its weights"),
    ],
)
def test_the_first_weight_that_does_not_fit_is_named(network, tmp_path, change, words) -> None:
    state = {key: value.clone() for key, value in network.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "model.pt")
    assert words in refusal(tmp_path / "model.pt", network)


def test_other_objects_and_damaged_files_are_told(network, tmp_path) -> None:
    path = tmp_path / "model.pt"
    torch.save([1, 2], path)
    assert "none of its weights" in refusal(path, network)
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])
    assert "cannot be read as weights" in refusal(path, network)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_file_does_not_run(network, tmp_path, write) -> None:
    write({"0.bias": Hostile(tmp_path / "ran")}, tmp_path / "model.pt")
    sentence = refusal(tmp_path / "model.pt", network)
    assert not (tmp_path / "ran").exists()
    assert "weights_only=False" not in sentence
