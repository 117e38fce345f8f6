# SPDX-License-Identifier: Apache-2.0
"""The settings of a run as plain values, from the config files and the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts.cli.overrides import CONFIGS, is_command_line, joined, parts_of, read_mapping
from scripts.cli.runs import shell_line
from scripts.cli.words import RUN_ARGUMENTS
from scripts.distributed.collectives import num_ranks

ENGINE = {"train", "validate", "initialize", "finalize", "training", "check_data", "run", "imports", "device"}
"""Keys that are not settings. They describe how a run is assembled, which depends on the bundle version only."""

PATHS = {"bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "cache_dir", "crossval_dir", "initial_weights"}

REFERENCE = re.compile(r"@([A-Za-z_]\w*)")


def run_settings(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Return the command, the config files, the overrides, and the values of all settings, as JSON types.

    References and expressions are replaced by their values, unless an object would have to be built for that: `terms`
    and `network_def` stay descriptions. Expressions with paths stay unchanged.

    Args:
        argv: the command line; `None` takes that of this process.

    Returns:
        `command`, `paths` (folders and files of this machine), `config_files`, `overrides` and `settings`; `None` if
        the process is not `python -m monai.bundle run`.
    """
    argv = list(sys.argv if argv is None else argv)
    if not is_command_line(argv):
        return None
    options, _, files = parts_of(argv)
    overrides = {k: DefaultParseValue(v) if v else True for k, v in options.items() if k not in RUN_ARGUMENTS}
    parser = ConfigParser(joined({file: read_mapping(file) for file in files})[0])
    for key, value in overrides.items():
        parser[key] = value
    content = {**parser.get(), "num_ranks": num_ranks()}
    plain = {key: _plain(value, content) for key, value in content.items() if key not in ENGINE and key[0] != "_"}
    return {
        "command": shell_line(["python", "-m", "monai.bundle", *argv[1:]]),
        "paths": {key: value for key, value in plain.items() if key in PATHS},
        "config_files": [_file_name(file) for file in files],
        "overrides": {key: value for key, value in overrides.items() if key not in PATHS},
        "settings": {key: value for key, value in plain.items() if key not in PATHS},
    }


def _plain(node: Any, content: Mapping[str, Any], inside: tuple[str, ...] = ()) -> Any:
    """Replace references and simple expressions in a node of the configuration by their values."""
    if isinstance(node, Mapping):
        return {key: _plain(value, content, inside) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, content, inside) for value in node]
    if not isinstance(node, str) or node[:1] not in ("@", "$"):
        return node
    names = set(REFERENCE.findall(node))
    if names & (PATHS | ENGINE | set(inside)):
        return node
    values = {name: _plain(content.get(name), content, (*inside, name)) for name in names}
    if not all(_is_value(value) for value in values.values()):
        return node
    parser = ConfigParser({**values, "wanted": node})
    with suppress(Exception):  # an expression may use an import in the configuration
        value = parser.get_parsed_content("wanted")
        return value if _is_value(value) else node
    return node


def _is_value(value: Any) -> bool:
    """Whether a value has JSON types only, and contains neither a description of an object nor an expression."""
    if isinstance(value, Mapping):
        return "_target_" not in value and all(_is_value(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(_is_value(each) for each in value)
    if isinstance(value, str):
        return not value.startswith(("@", "$", "%"))
    return value is None or isinstance(value, bool | int | float)


def _file_name(file: str) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(CONFIGS.parent)) if path.is_relative_to(CONFIGS.parent) else path.name
