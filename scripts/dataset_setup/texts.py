# SPDX-License-Identifier: Apache-2.0
"""The texts that new_dataset writes: the summary, `dataset.json` and the YAML file of the dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec, images_of
from scripts.dataset_setup.fingerprint import Fingerprint, LabelValues
from scripts.dataset_setup.layouts import COMMAND, FoundCase
from scripts.dataset_setup.plan import SMALL_VOLUME, Plan
from scripts.dataset_setup.roles import Roles
from scripts.errors import UserError
from scripts.images.header import case_name

# ------------------------------------------------------------------ the summary


def table_of(folder: Path, source: str, fingerprint: Fingerprint, roles: Roles, plan: Plan) -> str:
    """Format the summary to print.

    Args:
        folder: the searched folder.
        source: where the list of cases comes from.
        fingerprint: measured properties of the volumes.
        roles: the cases by role.
        plan: the settings.
    """
    spacings = np.array([grid.spacing for grid in fingerprint.grids])
    sizes = np.array([grid.shape for grid in fingerprint.grids])
    pairs = len(roles.with_label)
    rows = [
        ("cases", f"{len(spacings)}: {pairs} with label, {len(spacings) - pairs} without"),
        ("channels", str(plan.in_channels)),
        ("spacing, mm", _spread(spacings, "{:.3g}")),
        ("size, voxels", _spread(sizes, "{:.0f}")),
        ("intensity", _intensity(fingerprint)),
        ("modality", f"{plan.modality[0]}: {plan.modality[1]}"),
    ]
    lines = [f"{folder} (by {source})", *(f"  {key:<14}{text}" for key, text in rows), ""]
    lines += [f"  {'value':>7}  {'in cases':>8}  {'voxels':>12}  class", *_class_rows(fingerprint.labels, plan), ""]
    lines.append(
        f"  {len(roles.labelled)} labelled and {len(roles.unlabelled)} unlabelled cases for training, "
        f"{len(roles.validation)} for validation, {len(roles.test)} for testing."
    )
    lines.append(
        f"  Spacing {_by(plan.spacing)} mm, patch {_by(plan.roi_size)} voxels, {plan.batch_labelled} labelled and "
        f"{plan.batch_unlabelled} unlabelled patches per step, {plan.max_steps} steps."
    )
    lines.append(
        f"  Network for --preset {plan.preset}: widths {_flow(plan.widths)}, stem_stride {plan.stem_stride}, "
        f"{plan.norm} norm."
    )
    return "\n".join(lines + [f"  Note: {note}" for note in roles.notes])


def _spread(rows: np.ndarray, form: str) -> str:
    def joined(row: np.ndarray) -> str:
        return " x ".join(form.format(value) for value in row)

    return f"{joined(np.median(rows, axis=0))} (median; {joined(rows.min(axis=0))} to {joined(rows.max(axis=0))})"


def _intensity(fingerprint: Fingerprint) -> str:
    channels = [f"{channel.low:.4g} to {channel.high:.4g}" for channel in fingerprint.intensities]
    return f"{'; '.join(channels)} in the foreground of {fingerprint.sampled} cases (0.5th to 99.5th percentile)"


def _class_rows(labels: LabelValues, plan: Plan) -> list[str]:
    classes = [*zip(plan.label_values, plan.label_names, strict=True)]
    if plan.ignore_value is not None:
        classes.append((plan.ignore_value, "(ignored)"))
    return [f"  {value:>7}  {labels.cases[value]:>8}  {labels.voxels[value]:>12}  {name}" for value, name in classes]


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


# ------------------------------------------------------------------ dataset.json


def datalist_of(roles: Roles, relative_to: Path | None) -> dict[str, list[Any]]:
    """Make the lists of a `dataset.json`.

    Args:
        roles: cases with absolute paths.
        relative_to: paths inside this folder are written relative to it; with `None` all paths are absolute.
    """

    def written(path: str) -> str:
        if relative_to is None or not Path(path).is_relative_to(relative_to):
            return path
        return Path(path).relative_to(relative_to).as_posix()

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


def same_splits(path: Path, lists: Mapping[str, list[Any]]) -> bool:
    """Whether an existing datalist gives every case the same role."""
    home = path.parent
    try:
        there = load_cases(DatasetSpec(home, path.name))
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
        files.add(tuple(os.path.normpath(home / path) for path in [*images_of(case), case.get("label") or ""]))
    return files


def json_of(name: str, plan: Plan, lists: Mapping[str, list[Any]]) -> str:
    """Make the text of a `dataset.json`."""
    labels = {str(value): label for value, label in zip(plan.label_values, plan.label_names, strict=True)}
    content = {"name": name, "labels": labels, **lists, "written_by": COMMAND}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


# ------------------------------------------------------------------ the YAML


def yaml_of(plan: Plan, roles: Roles, name: str, dataset_dir: Path, datalist: str, file: Path) -> str:
    """Make the text of a dataset's YAML file, with a comment on each value.

    Args:
        plan: the settings.
        roles: the cases by role.
        name: name of the dataset.
        dataset_dir: folder of the datalist.
        datalist: file name of the datalist.
        file: path of the YAML file, for the command in its first lines.
    """
    entries = [
        ("dataset_name", _flow(name), ""),
        ("dataset_dir", _flow(str(dataset_dir)), "folder that paths in the datalist are relative to"),
        ("datalist", _flow(datalist), "lists the training, unlabelled, validation and test cases"),
        ("labelled_cases", "null", f"number of training cases whose labels are used; null: all {len(roles.labelled)}"),
        ("validation_cases", "0", "number of labelled cases (the last ones) held out to choose a checkpoint"),
        ("in_channels", str(plan.in_channels), "number of image channels"),
        ("label_names", _flow(plan.label_names), "name of each class, background first; rename them freely"),
        *_label_entries(plan),
        ("spacing", _flow(plan.spacing), "mm; median of all volumes; every volume is resampled to it"),
    ]
    lines = [_line(*entry) for entry in entries]
    lines += _intensity_lines(plan)
    size = " x ".join(map(str, plan.size))
    entries = [
        (
            "roi_size",
            _flow(plan.roi_size),
            f"patch size, voxels; the median volume has {size}; limited by --preset {plan.preset}",
        ),
        ("stem_stride", str(plan.stem_stride), _stem_reason(plan)),
        (
            "norm",
            plan.norm,
            f"{plan.norm} norm was better on data with stem_stride {plan.stem_stride}; or batch, group, instance",
        ),
        ("widths", _flow(plan.widths), f"channels of the network's stages, for --preset {plan.preset}"),
        ("flip_axes", "[]", "axes to mirror at random (0: left-right); add those along which the anatomy is symmetric"),
        ("batch_labelled", str(plan.batch_labelled), "labelled patches per step"),
        ("batch_unlabelled", str(plan.batch_unlabelled), _unlabelled_reason(plan)),
        ("max_steps", str(plan.max_steps), "optimiser steps; increase it if the curves still rise at the end"),
    ]
    lines += [_line(*entry) for entry in entries]
    head = f"""\
# Written by python -m scripts {COMMAND}. Edit it freely.
#
#   python -m scripts train {name}
#   python -m monai.bundle run training --config_file "['configs/train.yaml','{file}']"

"""
    return head + "\n".join(lines) + "\n"


def _label_entries(plan: Plan) -> list[tuple[str, str, str]]:
    entries = []
    if plan.label_values != list(range(len(plan.label_values))):
        entries.append(("label_values", _flow(plan.label_values), "value of each class in the label files"))
    if plan.ignore_value is not None:
        entries.append(("ignore_value", str(plan.ignore_value), "label value of voxels to ignore"))
    return entries


def _intensity_lines(plan: Plan) -> list[str]:
    kind, reason = plan.modality
    if kind == "CT and other":
        return _channel_lines(plan, reason)
    window = plan.windows[0]
    if window is None:
        return [
            f"intensity:  # z-score of each volume, as for MR: {reason}",
            "  _target_: Compose",
            "  transforms:",
            "    # a few voxels of metal would otherwise carry all the variance",
            "    - {_target_: ClipIntensityPercentilesd, keys: image, lower: 0.1, upper: 99.9, channel_wise: true}",
            "    - {_target_: NormalizeIntensityd, keys: image, channel_wise: true}",
        ]
    low, high = window
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


def _stem_reason(plan: Plan) -> str:
    if plan.stem_stride == 1:
        return f"the median volume is small (at most {SMALL_VOLUME} voxels), so that full resolution costs little"
    return (
        f"the median volume has more than {SMALL_VOLUME} voxels, so that the network's stages work at half resolution"
    )


def _channel_lines(plan: Plan, reason: str) -> list[str]:
    """Make the lines that normalise each channel separately: a window for CT, z-scores for others."""
    keys = [f"image_{channel}" for channel in range(len(plan.windows))]
    lines = [
        f"intensity:  # each channel by itself: {reason}",
        "  _target_: Compose",
        "  transforms:",
        f"    - {{_target_: SplitDimd, keys: image, dim: 0, output_postfixes: {_flow([key[6:] for key in keys])}}}",
    ]
    for key, window in zip(keys, plan.windows, strict=True):
        if window is None:
            lines.append(f"    - {{_target_: ClipIntensityPercentilesd, keys: {key}, lower: 0.1, upper: 99.9}}")
            lines.append(f"    - {{_target_: NormalizeIntensityd, keys: {key}}}  # z-score")
        else:
            lines.append("    # 0.5th and 99.5th percentile of foreground voxels in training cases")
            lines.append(
                f"    - {{_target_: ScaleIntensityRanged, keys: {key}, a_min: {window[0]}, a_max: {window[1]}, "
                "b_min: -1.0, b_max: 1.0, clip: true}"
            )
    return [
        *lines,
        f"    - {{_target_: ConcatItemsd, keys: {_flow(keys)}, name: image}}",
        f"    - {{_target_: DeleteItemsd, keys: {_flow(keys)}}}",
    ]


def _unlabelled_reason(plan: Plan) -> str:
    return "unlabelled patches per step" if plan.batch_unlabelled else "there are no unlabelled cases"


def _line(key: str, value: str, reason: str) -> str:
    return f"{key}: {value}" + (f"  # {reason}" if reason else "")


def _flow(value: Any) -> str:
    """Format a value as JSON, which is valid YAML and can represent any character."""
    return json.dumps(value, ensure_ascii=False)
