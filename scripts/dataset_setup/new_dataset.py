# SPDX-License-Identifier: Apache-2.0
"""Set up a dataset (`python -m scripts new-dataset`): find and measure the cases, choose settings, write files."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.data.checks.labels import never_together
from scripts.dataset_setup.fingerprint import measure
from scripts.dataset_setup.layouts import FoundCase, read_generated
from scripts.dataset_setup.lookalikes import copies, different_labels, refuse_label_like, shortened
from scripts.dataset_setup.plan import Machine, Plan, make_plan
from scripts.dataset_setup.roles import Request, Roles, assign, gather
from scripts.dataset_setup.texts import datalist_of, json_of, same_splits, table_of, yaml_of
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.read import parts_of
from scripts.progress import Progress, progress_bar

FEW_VOXELS = 10
"""A note mentions label values with fewer voxels per file, on average: often mistakes, or artefacts of a conversion."""

SMALLEST_VOXEL = 0.02
"""Sides of voxels (mm) below which a note asks for the unit: finer than micro-CT, and what metres look like."""

NAME = re.compile(r"[\w.\-]+")


def new_dataset(request: Request, machine: Machine | None = None, show: Callable[[str], None] = print) -> Path:
    """Write `dataset.json` and a YAML for a folder of images and labels.

    Args:
        request: options of the command.
        machine: machine whose memory limits the patch size (default: this one).
        show: function that prints a text. It is called with a summary before anything is written, and then with the
            written files and the next commands.

    Returns:
        Path of the YAML file; with `dry_run` it is not written.

    Raises:
        UserError: for an unusable folder or request, or a file that exists already; in this case nothing is written.
    """
    if not NAME.fullmatch(request.name) or request.name.startswith((".", "-")):
        raise UserError(
            f"--name {request.name!r} may have letters, digits, _, - and dots, and starts with no - or dot."
        )
    home = _home(request)
    config = (request.config or home / f"{request.name}.yaml").absolute()
    cases, description, source = gather(request)
    roles = assign(cases, request)
    roles.notes += [*description.notes, *different_labels(cases), *copies(cases)]
    _refuse_existing(config, request)
    _datalist(request, roles, home)  # fails early if the file exists, because measuring takes minutes
    ignore_value = description.ignore_value if request.ignore_value is None else request.ignore_value
    fingerprint = measure(roles, ignore_value, progress_bar)
    if not request.keep_lookalikes:
        refuse_label_like(fingerprint.label_like)
    plan = make_plan(
        fingerprint,
        description,
        request.label_names,
        ignore_value,
        bool(roles.unlabelled),
        machine or Machine.of(request.preset),
    )
    held = [values - {plan.label_values[0], ignore_value} for values in fingerprint.labels.files]
    names = dict(zip(plan.label_values, plan.label_names, strict=True))
    roles.notes += [finding.sentence for finding in never_together(held, names)]
    counts, values = fingerprint.labels.cases, fingerprint.labels.voxels
    few = [
        f"{value} ({name}, {values[value]} voxels in {counts[value]} files)"
        for value, name in list(names.items())[1:]
        if 0 < values[value] < FEW_VOXELS * counts[value]
    ]
    if few:
        roles.notes.append(
            f"Few voxels have the value {' and '.join(few)}: if these are mistakes, correct the files; otherwise the "
            "network can hardly learn such a structure."
        )
    unused = [name for value, name in fingerprint.segments.items() if value not in names]
    if unused:
        roles.notes.append(f"No voxel belongs to the segment {', '.join(unused)} of label files: it is no class.")
    if max(plan.spacing) < SMALLEST_VOXEL:
        roles.notes.append(
            f"Voxels of {' x '.join(map(str, plan.spacing))} mm are smaller than those of any scanner: the unit of the "
            "files is probably not mm, and distances and volumes will be wrong."
        )
    if fingerprint.cut:
        roles.notes.append(
            f"{len(fingerprint.cut)} labels cover a part of their image ({shortened(fingerprint.cut)}); they are "
            "placed by their offset, and the rest is background."
        )
    grid = fingerprint.grids[0]
    if grid.time_axis and len(description.channel_names) != grid.channels:
        roles.notes.append(
            f"{roles.all[0].images[0]} is a time series by its header: its {grid.channels} time points are taken as "
            "the channels of one image. If each time point is a separate scan, split the files."
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
        show(f"Nothing was written (--dry_run). {config} would contain:\n\n{settings}")
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
        raise UserError("--output and --copy_to both set the folder of dataset.json: give only one of them.")
    if request.copy_to is not None and home.is_relative_to(folder):
        raise UserError(f"--copy_to {request.copy_to} is inside the folder to copy: choose one outside of it.")
    if not str(home).isprintable():
        raise UserError(f"{str(home)!r} has a character that is not printable: rename the folder.")
    if "#" in str(home):
        raise UserError(f"{home} contains #, which separates keys in MONAI: choose another folder with --output.")
    if home == folder and folder.is_dir() and not os.access(folder, os.W_OK) and not request.dry_run:
        raise UserError(f"{folder} is not writable: choose a folder for dataset.json with --output.")
    return home


def _datalist(request: Request, roles: Roles, home: Path) -> tuple[Path, dict[str, list[Any]], bool]:
    """Return the datalist's path, its lists, and whether the existing file is kept.

    The file is `dataset.json`, or `dataset_NAME.json` if `dataset.json` came with the data or belongs to a dataset of
    another name. An existing file that gives every case the same role is kept.
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
    """Copy the files of all cases to `target`, keeping their paths relative to the folder where they were found.

    Args:
        roles: cases with absolute paths.
        roots: folders that were searched.
        target: folder to copy to, outside of `roots`.
        progress: see `Progress`.

    Returns:
        The same roles with the paths of the copies.

    Raises:
        UserError: if the target of a copy exists with other content, or a file cannot be copied.
    """
    for case in roles.all:  # refuse before anything is copied
        for path in filter(None, (*case.images, case.label)):
            _parts(Path(path), copy_target(Path(path), roots, target), target)

    def copied(case: FoundCase) -> FoundCase:
        try:
            images = tuple(_copy(Path(path), roots, target) for path in case.images)
            return replace(case, images=images, label=case.label and _copy(Path(case.label), roots, target))
        except OSError as error:  # shutil.Error is an OSError that lists the failed files
            raise UserError(f"Case {case.name} cannot be copied to {target}: {error.strerror or error}.") from error

    bar = iter(progress(roles.all, "copying"))
    lists = {
        role: [copied(next(bar)) for _ in getattr(roles, role)]
        for role in ("labelled", "unlabelled", "validation", "test")
    }
    next(bar, None)  # closes the progress bar
    return Roles(**lists, notes=roles.notes)


def copy_target(path: Path, roots: Sequence[Path], target: Path) -> Path:
    """Return the path of a file's copy; files from further roots go to a subfolder with the name of the root."""
    for number, root in enumerate(roots):
        if path.is_relative_to(root):
            return (target if number == 0 else target / root.name) / path.relative_to(root)
    return target / path.name


def _parts(path: Path, goal: Path, target: Path) -> dict[Path, Path]:
    """Map the files that an image needs besides itself to their copies, which are at the same place relative to it."""
    files = {}
    for name in parts_of(path):
        copy = Path(os.path.normpath(goal.parent / name))
        if Path(name).is_absolute() or not copy.is_relative_to(target):
            raise UserError(
                f"{path} names {name} as the file of its voxels, which the copy could not name: write a path into the "
                "header that is relative to it and inside the dataset's folder, or convert the image to .nii.gz."
            )
        files[path.parent / name] = copy
    return files


def _copy(path: Path, roots: Sequence[Path], target: Path) -> str:
    goal = copy_target(path, roots, target)
    goal.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, goal, dirs_exist_ok=True)
        return str(goal)
    for file, copy in {path: goal, **_parts(path, goal, target)}.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.exists() and not filecmp.cmp(file, copy):
            raise UserError(f"{copy} exists and differs from {file}: choose an empty folder with --copy_to.")
        if not copy.exists():
            shutil.copy2(file, copy)
    return str(goal)
