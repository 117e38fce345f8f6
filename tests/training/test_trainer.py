# SPDX-License-Identifier: Apache-2.0
"""The trainer of two streams: its settings, and when it attaches handlers."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from scripts.cli.overrides import CONFIGS, check_overrides
from scripts.errors import UserError
from scripts.training.trainer import TwoStreamTrainer, prepare_two_stream_batch


class Witness:
    """Notes what it finds when it is attached."""

    def attach(self, engine):
        self.found = engine.network, engine.loss_function, engine.optimizer, engine.data_loader, engine.inferer


@pytest.fixture
def parts():
    network = nn.Linear(1, 1)
    return {
        "network": network,
        "loss_function": nn.MSELoss(),
        "optimizer": torch.optim.SGD(network.parameters(), lr=1.0),
        "train_data_loader": [1, 2, 3],
        "inferer": SimpleInferer(),
    }


def test_handlers_find_a_complete_trainer_when_they_are_attached(parts) -> None:
    witness = Witness()
    TwoStreamTrainer("cpu", 2, train_handlers=[witness], **parts)
    assert all(found is given for found, given in zip(witness.found, parts.values(), strict=True))


def test_unused_parameters_have_no_gradient(parts) -> None:
    """Zeros instead of none would let Adam move parameters that a step does not use, but only until a resume."""
    assert TwoStreamTrainer("cpu", 2, **parts).optim_set_to_none


def test_its_settings_can_be_overridden(parts) -> None:
    assert TwoStreamTrainer("cpu", 2, **parts).prepare_batch is prepare_two_stream_batch
    trainer = TwoStreamTrainer("cpu", 2, prepare_batch=len, optim_set_to_none=False, **parts)
    assert trainer.prepare_batch is len and not trainer.optim_set_to_none


def test_a_misspelt_argument_is_refused_on_the_command_line() -> None:
    words = ["monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")]
    assert check_overrides([*words, "--train::trainer::amp", "true"])
    with pytest.raises(UserError, match="--train::trainer::max_epochs"):
        check_overrides([*words, "--train::trainer::max_epohcs", "3"])


def test_compile_is_refused_because_a_compiled_network_calls_no_hook(parts) -> None:
    with pytest.raises(UserError, match="train::trainer::compile"):
        TwoStreamTrainer("cpu", 2, compile=True, **parts)


def test_prepare_passes_images_labels_and_the_weak_view_and_casts_no_label():
    batch = {
        "image": torch.ones(3, 1, 2, 2, 2),
        "label": torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8),
        "weak": torch.zeros(2, 1, 2, 2, 2),
        "case": ["a", "b", "c"],
    }
    image, label, args, kwargs = prepare_two_stream_batch(batch, torch.device("cpu"), dtype=torch.float64)
    assert image.dtype == kwargs["weak"].dtype == torch.float64
    assert label.dtype == torch.uint8
    assert args == ()
    assert torch.equal(image, batch["image"].double())
    assert torch.equal(kwargs["weak"], batch["weak"].double())
    assert kwargs["label"] is label and kwargs["cases"] == ["a", "b", "c"]


def test_prepare_gives_none_without_a_weak_view():
    batch = {"image": torch.ones(1, 1, 2, 2, 2), "label": torch.ones(1, 1, 2, 2, 2)}
    assert prepare_two_stream_batch(batch, torch.device("cpu"))[3]["weak"] is None
