# SPDX-License-Identifier: Apache-2.0
"""What `python -m scripts new-dataset` does: find cases, measure them, choose settings, show all of it, write."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.data.sizes import Progress, progress_bar
from scripts.dataset_setup.fingerprint import measure
from scripts.dataset_setup.layouts import FoundCase, read_generated
from scripts.dataset_setup.plan import Machine, Plan, make_plan
from scripts.dataset_setup.roles import Request, Roles, assign, gather
from scripts.dataset_setup.texts import datalist_of, json_of, same_splits, table_of, yaml_of
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.header import ending_of

NAME = re.compile(r"[\w.\-]+")


def new_dataset(request: Request, machine: Machine | None = None, show: Callable[[str], None] = print) -> Path:
    """Write `dataset.json` and a YAML for a folder of images and labels.

    Args:
        request: what to do.
        machine: the machine whose memory patches must fit, by default this one.
        show: takes what was found before anything is written, and then what was written and the next commands.

    Returns:
        The YAML's path; with `dry_run` nothing is written there.

    Raises:
        UserError: for a folder or request that cannot be trained on, or a file that exists; nothing is written then.
    """
    if not NAME.fullmatch(request.name) or request.name.startswith((".", "-")):
        raise UserError(f"--name {request.name!r} must be a file name of letters, digits, _, - and dots.")
    home = _home(request)
    config = (request.config or home / f"{request.name}.yaml").absolute()
    cases, description, source = gather(request)
    roles = assign(cases, request)
    _refuse_existing(config, request)
    _datalist(request, roles, home)  # refuses an existing file before minutes go into measuring
    ignore_value = description.ignore_value if request.ignore_value is None else request.ignore_value
    fingerprint = measure(roles, ignore_value, progress_bar)
    plan = make_plan(
        fingerprint, description, request.label_names, ignore_value, bool(roles.unlabelled), machine or Machine.here()
    )
    show(table_of(request.folder.absolute(), source, fingerprint, roles, plan) + "\n")
    _write(request, roles, plan, home, config, show)
    return config


def _write(request: Request, roles: Roles, plan: Plan, home: Path, config: Path, show: Callable[[str], None]) -> None:
    if request.copy_to is not None and not request.dry_run:
        roots = [p.absolute() for p in (request.folder, request.labels, request.unlabelled) if p is not None]
        roles = copy_cases(roles, roots, home, progress_bar)
    datalist, lists, keep = _datalist(request, roles, home)
    settings = yaml_of(plan, roles, request.name, home, datalist.name, config)
    if request.dry_run:
        show(f"Nothing is written (--dry_run). {config} would hold:\n\n{settings}")
        return
    if not keep:
        write_text(datalist, json_of(request.name, plan, lists))
    write_text(config, settings)
    show(_closing([config] if keep else [datalist, config], request.name, bool(roles.test)))


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


def _datalist(request: Request, roles: Roles, home: Path) -> tuple[Path, dict[str, list[Any]], bool]:
    """The datalist's path, its lists, and whether the file that is there is kept.

    It is `dataset.json`, or `dataset_NAME.json` if that file came with the data or belongs to another name. A file
    that gives every case the same role is kept.
    """
    elsewhere = request.output is not None and home != request.folder.absolute()
    lists = datalist_of(roles, None if elsewhere else home)
    path = home / "dataset.json"
    for file in (path, home / f"dataset_{request.name}.json"):
        ours = read_generated(file).get("name") == request.name
        if file.exists() and same_splits(file, lists) and not (request.force and ours):
            return file, lists, True
    if path.exists() and read_generated(path).get("name") != request.name:
        path = home / f"dataset_{request.name}.json"
    _refuse_existing(path, request)
    return path, lists, False


def _refuse_existing(path: Path, request: Request) -> None:
    if path.exists() and not request.force and not request.dry_run:
        raise UserError(f"{path} exists: overwrite it with --force, or choose another --name, --output or --config.")


def _closing(written: Sequence[Path], name: str, has_tests: bool) -> str:
    lines = [f"Wrote {path}" for path in written]
    lines += [f"Check:    python -m scripts check {name}", f"Train:    python -m scripts train {name}"]
    return "\n".join(lines + ([f"Evaluate: python -m scripts evaluate {name}"] if has_tests else []))


def copy_cases(roles: Roles, roots: Sequence[Path], target: Path, progress: Progress) -> Roles:
    """Copy the files of all cases below `target`, where they keep their paths below the root they were found in.

    Args:
        roles: cases with absolute paths.
        roots: folders that were searched.
        target: outside of them.
        progress: see `Progress`.

    Returns:
        The same roles with paths of the copies.

    Raises:
        UserError: if another file is there already, or a file cannot be copied.
    """

    def copied(case: FoundCase) -> FoundCase:
        try:
            images = tuple(_copy(Path(path), roots, target) for path in case.images)
            return replace(case, images=images, label=case.label and _copy(Path(case.label), roots, target))
        except OSError as error:  # of shutil's too, which lists all files of a folder
            raise UserError(f"Case {case.name} cannot be copied to {target}: {error.strerror or error}.") from error

    bar = iter(progress(roles.all, "copying"))
    lists = {
        role: [copied(next(bar)) for _ in getattr(roles, role)]
        for role in ("labelled", "unlabelled", "validation", "test")
    }
    next(bar, None)  # lets the bar end
    return Roles(**lists, notes=roles.notes)


def copy_target(path: Path, roots: Sequence[Path], target: Path) -> Path:
    """Where a file's copy goes; what was found in a further root lies in a folder with that root's name."""
    for number, root in enumerate(roots):
        if path.is_relative_to(root):
            return (target if number == 0 else target / root.name) / path.relative_to(root)
    return target / path.name


def _copy(path: Path, roots: Sequence[Path], target: Path) -> str:
    goal = copy_target(path, roots, target)
    goal.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, goal, dirs_exist_ok=True)
        return str(goal)
    files = [path]
    if ending_of(path) in (".mhd", ".nhdr"):  # headers that name a file of voxels beside them
        files += [f for f in sorted(path.parent.glob(f"{path.stem}.*")) if f != path]
    for file in files:
        copy = goal.with_name(file.name)
        if copy.exists() and not filecmp.cmp(file, copy):
            raise UserError(f"{copy} exists and differs from {file}: name an empty folder by --copy_to.")
        if not copy.exists():
            shutil.copy2(file, copy)
    return str(goal)
