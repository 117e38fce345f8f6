# SPDX-License-Identifier: Apache-2.0
"""What `python -m scripts new-dataset` does: find, measure, plan, show, write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from scripts.data.sizes import progress_bar
from scripts.dataset_setup.fingerprint import measure
from scripts.dataset_setup.generated import json_with_digest, read_generated, refuse_edited, yaml_with_digest
from scripts.dataset_setup.plan import CONFIGS, Machine, Plan, make_plan
from scripts.dataset_setup.roles import Request, Roles, assign, gather
from scripts.dataset_setup.table import table_of
from scripts.dataset_setup.texts import copy_cases, datalist_of, same_splits, yaml_of
from scripts.errors import UserError
from scripts.files import write_text

NAME = re.compile(r"[\w.\-]+")


def new_dataset(request: Request, machine: Machine | None = None, show: Callable[[str], None] = print) -> list[Path]:
    """Write `dataset.json` and `configs/datasets/<name>.yaml` for a folder of images and labels.

    Args:
        request: what to do.
        machine: what patches must fit, by default this machine.
        show: takes what was found, before anything is written, and then what was written and how to go on.

    Returns:
        The files written.

    Raises:
        UserError: for anything in folder or request that cannot be trained on; nothing is written then.
    """
    if not NAME.fullmatch(request.name) or request.name.startswith((".", "-")):
        raise UserError(f"--name {request.name!r} must be a file's name: letters, digits, _, - and dots.")
    config = (request.config or CONFIGS / "datasets" / f"{request.name}.yaml").absolute()
    home = _home(request)
    cases, description, source = gather(request)
    roles = assign(cases, request)
    refuse_edited(config, request.force)
    _datalist(request, roles, home)  # refuses an edited file before minutes go into measuring
    ignore_value = description.ignore_value if request.ignore_value is None else request.ignore_value
    fingerprint = measure(roles, ignore_value, progress_bar)
    plan = make_plan(
        fingerprint, description, request.label_names, ignore_value, bool(roles.unlabelled), machine or Machine.here()
    )
    show(table_of(request.folder.absolute(), source, fingerprint, roles, plan) + "\n")
    return _write(request, roles, plan, home, config, show)


def _write(
    request: Request, roles: Roles, plan: Plan, home: Path, config: Path, show: Callable[[str], None]
) -> list[Path]:
    if request.copy_to is not None and not request.dry_run:
        roots = [p.absolute() for p in (request.folder, request.labels, request.unlabelled) if p is not None]
        roles = copy_cases(roles, roots, home, progress_bar)
    datalist, lists, is_ours = _datalist(request, roles, home)
    names = {str(value): name for value, name in zip(plan.label_values, plan.label_names, strict=True)}
    listed = json_with_digest({"name": request.name, "labels": names, **lists})
    shown = os.path.relpath(config, CONFIGS.parent) if config.is_relative_to(CONFIGS.parent) else str(config)
    settings = yaml_with_digest(yaml_of(plan, roles, request.name, home, datalist.name, shown))
    if request.dry_run:
        show(f"Nothing is written (--dry_run). {config} would hold:\n\n{settings}")
        return []
    written = {datalist: listed, config: settings} if is_ours else {config: settings}
    for path, text in written.items():
        write_text(path, text)
    show(_closing(list(written), shown, bool(roles.test)))
    return list(written)


def _home(request: Request) -> Path:
    """Folder of `dataset.json`."""
    folder = request.folder.absolute()
    home = (request.copy_to or request.output or folder).absolute()
    if request.copy_to is not None and request.output is not None:
        raise UserError("--output and --copy_to both name a folder for dataset.json: give one of them.")
    if request.copy_to is not None and home.is_relative_to(folder):
        raise UserError(f"--copy_to {request.copy_to} lies in the folder that is copied: name one outside of it.")
    if "#" in str(home):
        raise UserError(f"{home} holds a #, which MONAI reads as a key in configs: name another folder by --output.")
    if home == folder and folder.is_dir() and not os.access(folder, os.W_OK) and not request.dry_run:
        raise UserError(f"{folder} cannot be written to: name a folder for dataset.json by --output.")
    return home


def _datalist(request: Request, roles: Roles, home: Path) -> tuple[Path, dict[str, list], bool]:
    """The datalist's path, its lists, and whether it is to be written.

    It is `dataset.json`, unless that file came with the data or belongs to another name, and says something else.
    """
    elsewhere = request.output is not None and home != request.folder.absolute()
    lists = datalist_of(roles, None if elsewhere else home)
    path = home / "dataset.json"
    owner = read_generated(path).get("name") if path.exists() else request.name
    if owner != request.name:
        if same_splits(home, lists):
            return path, lists, False
        path = home / f"dataset_{request.name}.json"
    refuse_edited(path, request.force)
    return path, lists, True


def _closing(written: list[Path], config: str, has_tests: bool) -> str:
    lines = [f"Wrote {path}" for path in written]
    files = f"'configs/train.yaml','{config}'"
    lines.append(f'Train:    python -m monai.bundle run training --config_file "[{files}]"')
    if has_tests:
        lines.append(
            f"Evaluate: python -m monai.bundle run evaluating --config_file \"[{files},'configs/evaluate.yaml']\""
        )
    return "\n".join(lines)
