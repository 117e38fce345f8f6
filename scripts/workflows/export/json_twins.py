# SPDX-License-Identifier: Apache-2.0
"""JSON files beside YAML ones, for readers that know no YAML or look for JSON by default.

The first is `monai.bundle.load`, the second NVFlare's `MonaiAlgo`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.whole_files import write_text
from scripts.workflows.export.metadata import bundle_metadata
from scripts.workflows.export.settings import ROOT, ExportSettings

TWINS = ("train", "evaluate", "inference")


def twin_text(yaml_file: Path) -> str:
    """The content of a YAML configuration as JSON text; comments stay behind."""
    return _text(ConfigParser.load_config_file(str(yaml_file)))


def write_twins(configs: Path) -> list[Path]:
    """Write `train.json`, `evaluate.json` and `inference.json` beside their YAML files.

    Args:
        configs: the folder.

    Returns:
        The files written.
    """
    written = []
    for name in TWINS:
        write_text(configs / f"{name}.json", twin_text(configs / f"{name}.yaml"))
        written.append(configs / f"{name}.json")
    return written


def twins_of_dataset(settings: ExportSettings) -> dict[str, str]:
    """`train.json`, `inference.json` and `metadata.json` of the dataset whose file stands behind `inference.yaml`.

    Readers of bundles take one file of each kind, so the dataset's values must be in it. `train.json` is for readers
    that bring their cases: where the dataset's own datalist is not there, it has no cases of its own. `inference.json`
    keeps the folder of images of `inference.yaml`, as the dataset's is that of the training.

    Args:
        settings: configuration and weights.

    Returns:
        Name to content.
    """
    train = _merged(["train.yaml", *settings.config_files[1:]], settings.overrides)
    train["cases"] = {**train["cases"], "_target_": "scripts.data.datalist.load_cases_if_listed"}
    inference = _merged(["inference.yaml", *settings.config_files[1:]], settings.overrides)
    inference["dataset_dir"] = ConfigParser.load_config_file(str(ROOT / "configs/inference.yaml"))["dataset_dir"]
    contents = {"train": train, "inference": inference, "metadata": bundle_metadata(settings)}
    return {f"{name}.json": _text(content) for name, content in contents.items()}


def _merged(files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config files (a name alone is one of the bundle's) and the overrides of keys that are among theirs."""
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files]))
    for key, value in overrides.items():
        if key.replace("#", "::").split("::")[0] in parser.get():
            parser[key] = value
    return {key: value for key, value in parser.get().items() if key != parser.meta_key}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=4) + "\n"
