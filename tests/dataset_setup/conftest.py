# SPDX-License-Identifier: Apache-2.0
"""A fixture that runs `new_dataset` and reads the files that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request
from tests.scan_folder import MACHINE


@pytest.fixture
def run(tmp_path: Path):
    """Run `new_dataset` on a folder; returns the YAML's content, the cases, and the printed text."""

    def call(folder: Path, name: str = "mine", **options):
        config = options.pop("config", tmp_path / "configs" / f"{name}.yaml")
        shown: list[str] = []
        new_dataset(Request(folder, name, config=config, **options), MACHINE, shown.append)
        text = "\n".join(shown)
        settings = yaml.safe_load(config.read_text()) if config.exists() else {}
        cases = load_cases(DatasetSpec(settings["dataset_dir"], settings["datalist"])) if settings else None
        return settings, cases, text

    return call
