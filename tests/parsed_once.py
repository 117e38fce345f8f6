# SPDX-License-Identifier: Apache-2.0
"""MONAI parses a config file of this project once per process, and lists its own classes once.

Otherwise each of several hundred workflows spends a third of a second on that. Forked processes inherit what is known.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def install() -> None:
    """Replace MONAI's two functions by ones that remember their results."""
    load = ConfigParser.load_config_file
    find = ComponentLocator._find_classes_or_functions

    @functools.cache
    def parsed(path: str, changed: int) -> dict[str, Any]:
        return load(path)

    def load_config_file(cls: type, filepath: str | Path, **options: Any) -> dict[str, Any]:
        path = Path(filepath or "").absolute()
        if options or not path.is_relative_to(CONFIGS) or not path.is_file():
            return load(filepath, **options)
        return copy.deepcopy(parsed(str(path), os.stat(path).st_mtime_ns))

    @functools.cache
    def found(modules: tuple[str, ...]) -> dict[str, list]:
        return find(None, modules)

    def find_classes_or_functions(self: ComponentLocator, modules: Sequence[str] | str) -> dict[str, list]:
        return found((modules,) if isinstance(modules, str) else tuple(modules))

    ConfigParser.load_config_file = classmethod(load_config_file)
    ComponentLocator._find_classes_or_functions = find_classes_or_functions
