# SPDX-License-Identifier: Apache-2.0
"""Two small config files, and a fixture that restores hooks and flags of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from scripts.cli.start import check_command_line

BASE = """
seed: 0
max_steps: 300
learning_rate: 0.002
rate: "$@learning_rate * @rate_factor"
train:
  trainer:
    max_epochs: "@max_steps"
training: ["$@train::trainer"]
network: {_target_: scripts.networks.vnet.VNet, norm: instance}
optimizer: {_target_: dict, lr: 1}
stages: [1, 2]
"""
LATER = """
val_interval: 5
+training: ["$@post"]
train::trainer::amp: false
"""


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch):
    check_command_line.cache_clear()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Path of a file with `BASE`; `later.yaml` beside it holds `LATER`."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "later.yaml").write_text(LATER)
    return str(tmp_path / "base.yaml")


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """MONAI's log handlers may hold streams of earlier tests that pytest has closed."""
    monkeypatch.setattr("logging.raiseExceptions", False)
