# SPDX-License-Identifier: Apache-2.0
"""Check the options of `python -m monai.bundle run`, because MONAI silently ignores unknown ones."""

from __future__ import annotations

import ast
import difflib
import inspect
import pydoc
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, merge_kv

from scripts.cli.words import RUN_ARGUMENTS, kept_value, parse_words
from scripts.errors import UserError, first_line

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

RENAMED = {"cache_rate": "cache", "unlabelled_from": "unlabelled_start", "tap_layer": "feature_layer"}
"""Former keys, and the keys that replace them."""

COMPONENT_KEYS = {"_target_", "_requires_", "_disabled_", "_mode_", "_desc_"}
REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*(?:::\w+)+)")
COMMAND_LINE = "the command line"
TOP_KEY = re.compile(r"^\+?([A-Za-z_]\w*)(?=::|#|:)", re.MULTILINE)


def is_command_line(argv: Sequence[str]) -> bool:
    """Whether this process is `python -m monai.bundle run ...`."""
    return len(argv) > 1 and Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1] == "run"


def check_overrides(argv: Sequence[str]) -> dict[str, Any]:
    """Raise an error for options and config keys that would have no effect, and for arguments without an option.

    Args:
        argv: the whole command line.

    Returns:
        The content of the config files, overridden by the values of the command line.

    Raises:
        UserError: names the option or key, and the most similar known one.
    """
    options, alone, files = parts_of(argv)
    contents = {file: read_mapping(file) for file in files}
    tree, referred = joined(contents)
    # A key that a file refers to as @name but no file defines must be given on the command line.
    known = RUN_ARGUMENTS | set(tree) | referred
    if "tracking" in options:
        known |= set(DEFAULT_MLFLOW_SETTINGS["configs"])
    # The first argument without an option is the name of the list to run.
    for word in alone[1:]:
        name = word if word in known else "NAME"
        raise UserError(f"'{word}' belongs to no option: write --{name} VALUE.")
    for option in options:
        _check_option(option, options, tree, known)
    run_id = alone[0] if alone else options.get("run_id", "run")
    if run_id not in tree:
        near = difflib.get_close_matches(run_id, sorted(tree), n=1)
        hint = f"did you mean {near[0]}?" if near else "name a list to run, as in `run training`."
        raise UserError(f"The config files have no key '{run_id}' to run: {hint}")
    _check_keys_of_files(contents, referred)
    given = {option: DefaultParseValue(value) if value else True for option, value in options.items()}
    own = {key.replace("#", "::"): value for key, value in given.items() if key not in RUN_ARGUMENTS}
    _check_blocks({**contents, COMMAND_LINE: own})
    _check_arguments(contents, tree)
    for file in files:
        _check_values_of_file(file, contents[file])
    return tree | given


def parts_of(argv: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return options, arguments without an option, and config files of `python -m monai.bundle run`."""
    options, alone = parse_words(argv[2:])
    arguments = read_mapping(options["args_file"]) if "args_file" in options else {}
    return options, alone, config_files_of(options.get("config_file", arguments.get("config_file")))


def accepted_options(files: Sequence[str], options: Mapping[str, str]) -> dict[str, str]:
    """Select the options that would have an effect on the config files.

    Args:
        files: config files; later ones replace keys of earlier ones.
        options: values by name.
    """
    tree, referred = joined({file: read_mapping(file) for file in files})
    accepted = {}
    for option, value in options.items():
        with suppress(UserError):
            _check_option(option, options, tree, RUN_ARGUMENTS | set(tree) | referred)
            accepted[option] = value
    return accepted


def joined(contents: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], set[str]]:
    """Merge config files as MONAI does; return the merged content and the names that the files refer to."""
    parser = ConfigParser({})
    for file, content in contents.items():
        for key, value in content.items():
            try:
                merge_kv(parser, key, deepcopy(value))  # later files change merged values in place
            except (LookupError, TypeError, ValueError) as error:
                _refuse_place(file, key, parser.get(), error)
    text = "".join(Path(file).read_text(encoding="utf-8") for file in contents)
    return parser.get(), set(re.findall(r"[@%]([A-Za-z_]\w*)", text))


def _refuse_place(file: str, key: str, tree: Mapping[str, Any], error: Exception) -> None:
    """Raise an error about a nested key of a file whose parent does not exist in any earlier file."""
    path = _parts(key)
    what = f"The key '{key}' in {file}"
    for depth, part in enumerate(path[:-1]):
        node = _below(tree, path[:depth])
        children = dict(enumerate(node)) if isinstance(node, list) else node
        names = [str(name) for name in children] if isinstance(children, Mapping) else []
        if part not in names:
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean {'::'.join([*path[:depth], *near, *path[depth + 1 :]])}?" if near else "correct it."
            holder = "::".join(path[:depth]) or "the configuration"
            raise UserError(f"{what} names '{part}', which {holder} does not have: {hint}") from error
    raise UserError(f"{what} is below {'::'.join(path[:-1])}, which has no parts: correct it.") from error


def _below(node: Any, path: Sequence[str]) -> Any:
    """Return the node at a path, or `None`: a later file may have replaced a block that an earlier file changed."""
    with suppress(LookupError, TypeError, ValueError):
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node
    return None


def _check_arguments(contents: Mapping[str, Mapping[str, Any]], tree: Mapping[str, Any]) -> None:
    """Raise an error for an argument in a user's file that the component does not have."""
    for file, content in contents.items():
        for key, value in () if _is_own(file) else content.items():
            *above, last = _parts(key)
            _check_component(file, "::".join(above), _below(tree, above), [last])
            for place, block in _nodes(value, key):
                _check_component(file, place, block, list(block) if isinstance(block, Mapping) else [])


def _check_component(file: str, place: str, node: Any, names: Sequence[str]) -> None:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return
    arguments = _arguments_of(target)
    for name in names:
        if arguments is not None and name not in arguments | COMPONENT_KEYS:
            near = difflib.get_close_matches(name, sorted(arguments), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(arguments)) or 'none'}."
            raise UserError(f"'{name}' in {file}, at {place}, is not an argument of {target}: {hint}")


def read_mapping(file: str | Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        UserError: if it does not exist, is not valid YAML or JSON, holds no keys, or holds a duplicate key
            (for which MONAI only warns).
    """
    if not Path(file).is_file():
        raise UserError(f"The config file {file} does not exist: correct the path.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Dd]uplicate")
            content = ConfigParser.load_config_file(file)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line} is not valid YAML: {error.problem}. Correct the line.") from error
    except (UserWarning, ValueError) as error:
        raise UserError(f"{file} is not a valid config file: {first_line(error)}.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no keys: write `key: value` lines.")
    return content


def _check_keys_of_files(contents: Mapping[str, Mapping[str, Any]], referred: set[str]) -> None:
    """Raise an error for a key of a later config file that no other file has or refers to; it is probably misspelt.

    Dataset files have keys for all commands, so the keys of all config files of the bundle count as known.
    """
    keys = {file: [top_key(key) for key in content] for file, content in contents.items()}
    own = {name for file in CONFIGS.glob("*.yaml") for name in TOP_KEY.findall(file.read_text(encoding="utf-8"))}
    for file in list(keys)[1:]:
        used = (referred | own).union(*(names for other, names in keys.items() if other != file))
        for name in keys[file]:
            if name not in used and not name.startswith("_") and not _is_own(file):
                similar = _similar(name, used)
                hint = f"did you mean {similar}?" if similar else "remove it, or refer to it as @" + name + "."
                raise UserError(f"The key '{name}' in {file} is not used by any config file: {hint}")


def _check_values_of_file(file: str, node: Any, place: str = "") -> None:
    """Raise an error for a string with a #, which MONAI would change to ::."""
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            if key != "_desc_":
                _check_values_of_file(file, value, f"{place}::{key}" if place else str(key))
    elif isinstance(node, str) and "#" in node and not node.startswith(("$", "@", "%")):
        kept = kept_value("", node)
        raise UserError(f'The value {node!r} of {place} in {file} has a #, which MONAI turns into ::. Write "{kept}".')


def _check_blocks(sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise an error for a block that replaces another one but lacks a required part; MONAI does not merge blocks.

    Args:
        sources: content of the config files, and the options under `COMMAND_LINE`, in the order in which MONAI applies
            them.
    """
    parser = ConfigParser({})
    before: dict[str, Any] = {}
    for source, content in sources.items():
        for key, value in content.items():
            if _lacks_target(before.get(key), value):
                _refuse_block(source, key, value, "no _target_ to build something from")
            merge_kv(parser, key, deepcopy(value))
        now = dict(_nodes(parser.get()))
        text = " ".join(node for node in now.values() if isinstance(node, str))
        lost = [each for each in REFERENCE.findall(text) if each in before and each not in now]
        for key, value in content.items():
            for each in lost:
                if isinstance(value, Mapping) and each.startswith(f"{key}::"):
                    _refuse_block(source, key, value, f"no {each.removeprefix(f'{key}::')}, which is used as @{each}")
        before = now


def _lacks_target(before: Any, value: Any) -> bool:
    if not isinstance(before, Mapping) or "_target_" not in before:
        return False
    return isinstance(value, set | list | tuple) or (isinstance(value, Mapping) and "_target_" not in value)


def _refuse_block(source: str, key: str, value: Any, lack: str) -> None:
    place, leaf = next(((place, node) for place, node in _nodes(value, key) if place != key), (f"{key}::NAME", "VALUE"))
    example = f"--{place} {leaf}" if source == COMMAND_LINE else f"{place}: {leaf}"
    raise UserError(
        f"The block {key} in {source} replaces the whole block of that name and has {lack}: to change single values, "
        f"write them one by one, as in `{example}`."
    )


def _nodes(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all nodes of a configuration with their paths; values come before the blocks that contain them."""
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _nodes(value, f"{place}::{key}" if place else str(key))
    yield place, node


def _similar(name: str, known: Iterable[str]) -> str | None:
    """Return the known key that was probably meant."""
    return RENAMED.get(name) or next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def top_key(key: str) -> str:
    """Return the top-level key: `train` of `train::trainer::amp`, `terms` of `+terms` (MONAI's syntax to append)."""
    return _parts(key)[0]


def _parts(key: str) -> list[str]:
    """Split the path of a nested key into keys."""
    return re.split("::|#", key.removeprefix("+"))


def _is_own(file: str) -> bool:
    return Path(file).resolve().parent == CONFIGS


def _check_option(option: str, options: Mapping[str, str], tree: Mapping[str, Any], known: set[str]) -> None:
    path = option.replace("#", "::").split("::")
    if path[0] not in known:
        similar = _similar(path[0], known)
        hint = "The keys are listed at the top of configs/train.yaml."
        _refuse(option, f"Did you mean --{'::'.join([similar, *path[1:]])}?" if similar else hint)
    node: Any = tree.get(path[0])
    if option in tree or node is None:
        return
    for depth, key in enumerate(path[1:], start=1):
        above = "::".join(path[:depth])
        if above in options:  # an option replaces the whole block
            return
        names = _names_in(node, options.get(f"{above}::_target_"))
        if names is None:
            return
        if key not in names:
            near = difflib.get_close_matches(key, sorted(names), n=1)
            meant = "::".join([above, *near, *path[depth + 1 :]])
            hint = f"Did you mean --{meant}?" if near else f"'{above}' has: {', '.join(sorted(names)) or '-'}."
            _refuse(option, hint)
        node = node[int(key)] if isinstance(node, list) else node.get(key)


def _names_in(node: Any, target: str | None) -> set[str] | None:
    """Return the keys that are allowed below a node of the configuration; `None` if they are unknown."""
    if isinstance(node, list):
        return {str(i) for i in range(len(node))}
    if not isinstance(node, Mapping):
        return set()
    target = target or node.get("_target_")
    if target is None:
        return set(node)
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return None
    arguments = _arguments_of(target)
    return None if arguments is None else set(node) | arguments | COMPONENT_KEYS


def _arguments_of(target: str) -> set[str] | None:
    """Return the argument names of a `_target_`; `None` if it accepts any keyword or cannot be found."""
    located = ConfigComponent({"_target_": target}, "", ComponentLocator()).resolve_module_name()
    found = pydoc.locate(located) if isinstance(located, str) else located
    try:
        parameters = inspect.signature(cast(Callable[..., Any], found)).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def _refuse(option: str, hint: str) -> None:
    raise UserError(f"The config files have no key '{option}', so --{option} would have no effect. {hint}")


def config_files_of(value: Any) -> list[str]:
    """Return the config files as a list, given a path, a list of paths, or such a list as a string."""
    if value is None:
        raise UserError("No config file is given: add --config_file FILE.")
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    return [str(file) for file in value] if isinstance(value, list | tuple) else [str(value)]
