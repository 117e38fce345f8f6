# SPDX-License-Identifier: Apache-2.0
"""JSON files beside YAML ones, for readers that know no YAML or look for JSON by default.

The first is `monai.bundle.load`, the second NVFlare's `MonaiAlgo`.
"""

from __future__ import annotations

import json
from pathlib import Path

from monai.bundle import ConfigParser

from scripts.whole_files import write_text

TWINS = ("train", "evaluate", "inference")


def twin_text(yaml_file: Path) -> str:
    """The content of a YAML configuration as JSON text; comments stay behind."""
    return json.dumps(ConfigParser.load_config_file(str(yaml_file)), ensure_ascii=False, indent=4) + "\n"


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
