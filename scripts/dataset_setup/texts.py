# SPDX-License-Identifier: Apache-2.0
"""The texts of `dataset.json` and of a dataset's YAML, and the copies that were asked for."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.layouts import FoundCase
from scripts.dataset_setup.plan import Plan
from scripts.dataset_setup.roles import Roles
from scripts.errors import UserError
from scripts.images.header import case_name, ending_of


def datalist_of(roles: Roles, relative_to: Path | None) -> dict[str, list[Any]]:
    """The lists of a `dataset.json`.

    Args:
        roles: cases with absolute paths.
        relative_to: paths below it are written relative to it; `None` writes every path absolute.
    """

    def written(path: str) -> str:
        inside = relative_to is not None and Path(path).is_relative_to(relative_to)
        return Path(path).relative_to(relative_to).as_posix() if inside else path

    def entry(case: FoundCase) -> dict[str, Any]:
        images = [written(image) for image in case.images]
        item: dict[str, Any] = {"image": images if len(images) > 1 else images[0]}
        if case.label is not None:
            item["label"] = written(case.label)
        if case.name != case_name(case.images[0]):
            item["case"] = case.name
        return item

    lists = {"training": roles.labelled, "unlabeled": roles.unlabelled, "validation": roles.validation}
    return {key: [entry(case) for case in cases] for key, cases in {**lists, "test": roles.test}.items() if cases}


def same_splits(home: Path, lists: dict[str, list[Any]]) -> bool:
    """Whether the `dataset.json` of a folder, whoever wrote it, gives every case the same role."""
    try:
        there = load_cases(DatasetSpec(home, "dataset.json"))
    except UserError:
        return False
    wanted = {
        "labelled": lists["training"],
        "unlabelled": lists.get("unlabeled", []),
        "validation": lists.get("validation", []),
        "test": lists.get("test", []),
    }
    return all(_as_set(home, getattr(there, role)) == _as_set(home, cases) for role, cases in wanted.items())


def _as_set(home: Path, cases: Sequence[dict[str, Any]]) -> set[tuple[str, ...]]:
    files = set()
    for case in cases:
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        files.add(tuple(os.path.normpath(home / path) for path in [*images, case.get("label") or ""]))
    return files


def copy_cases(roles: Roles, roots: Sequence[Path], target: Path, progress: Callable) -> Roles:
    """Copy the files of all cases below `target`, where they keep their paths below the root they were found in.

    Args:
        roles: cases with absolute paths.
        roots: folders that were searched.
        target: outside of them.
        progress: wraps what is looped over in a progress bar with a title.

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


def yaml_of(plan: Plan, roles: Roles, name: str, dataset_dir: Path, datalist: str, config: str) -> str:
    """The text of `configs/datasets/<name>.yaml`, each value with its reason beside it."""
    cases = len(roles.labelled)
    entries = [
        ("dataset_name", _flow(name), ""),
        ("dataset_dir", _flow(str(dataset_dir)), "paths in the datalist start here"),
        ("datalist", _flow(datalist), "which case trains, is used without label, or tests"),
        ("labelled_cases", "null", f"all {cases} training cases that have a label; N: the first N"),
        ("validation_cases", "0", "N holds out the last N labelled cases, to choose a checkpoint by"),
        ("in_channels", str(plan.in_channels), "as every case has"),
        ("label_names", _flow(plan.label_names), "of the classes 0, 1, 2, ...; rename them freely"),
        *_label_entries(plan),
        ("spacing", _flow(plan.spacing), "mm; the median of all volumes, to which each is resampled"),
    ]
    lines = [_line(*entry) for entry in entries]
    lines += _intensity_lines(plan)
    size = " x ".join(map(str, plan.size))
    entries = [
        ("roi_size", _flow(plan.roi_size), f"voxels; within a median volume, {size}, and what this machine can train"),
        ("flip_axes", "[]", "axes (0: left-right) along which anatomy may be mirrored; a file cannot say which"),
        ("batch_labelled", str(plan.batch_labelled), "labelled patches a step; one alone is slow on a CPU"),
        ("batch_unlabelled", str(plan.batch_unlabelled), _unlabelled_reason(plan)),
        ("max_steps", "1000", "optimiser steps; raise it while curves still rise"),
    ]
    lines += [_line(*entry) for entry in entries]
    if plan.cache_rate < 1:
        reason = "fraction of the prepared volumes that memory has room for; the others are read at each visit"
        lines.append(_line("cache_rate", str(plan.cache_rate), reason))
    head = f"""\
#
#   python -m monai.bundle run training --config_file "['configs/train.yaml','{config}']"

"""
    return head + "\n".join(lines) + "\n"


def _label_entries(plan: Plan) -> list[tuple[str, str, str]]:
    entries = []
    if plan.label_values != list(range(len(plan.label_values))):
        entries.append(("label_values", _flow(plan.label_values), "value of each class in the label files"))
    if plan.ignore_value is not None:
        entries.append(
            ("ignore_value", str(plan.ignore_value), "voxels of this value in label files count for nothing")
        )
    return entries


def _intensity_lines(plan: Plan) -> list[str]:
    kind, reason = plan.modality
    if plan.window is None:
        head = f"intensity:  # z-score of each volume, as for MR: {reason}"
        return [head, "  _target_: NormalizeIntensityd", "  keys: image", "  channel_wise: true"]
    low, high = plan.window
    return [
        f"intensity:  # {kind}: {reason}",
        "  _target_: ScaleIntensityRanged",
        "  keys: image",
        f"  a_min: {low}  # 0.5th percentile of foreground voxels in training cases",
        f"  a_max: {high}  # 99.5th percentile",
        "  b_min: -1.0",
        "  b_max: 1.0",
        "  clip: true",
    ]


def _unlabelled_reason(plan: Plan) -> str:
    return "unlabelled patches a step" if plan.batch_unlabelled else "there are no unlabelled cases"


def _line(key: str, value: str, reason: str) -> str:
    return f"{key}: {value}" + (f"  # {reason}" if reason else "")


def _flow(value: Any) -> str:
    """A text, number or list in the part of YAML that is JSON: any letter, dot or blank is safe in it."""
    return json.dumps(value, ensure_ascii=False)
