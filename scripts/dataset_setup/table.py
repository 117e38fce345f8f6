# SPDX-License-Identifier: Apache-2.0
"""A table of what was found in a folder and of the settings that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.dataset_setup.fingerprint import Fingerprint, LabelValues
from scripts.dataset_setup.plan import Plan
from scripts.dataset_setup.roles import Roles


def table_of(folder: Path, source: str, fingerprint: Fingerprint, roles: Roles, plan: Plan) -> str:
    """Lines to print.

    Args:
        folder: the folder that was searched.
        source: what told images from labels.
        fingerprint: what was measured.
        roles: which case does what.
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
        f"{plan.batch_unlabelled} unlabelled patches per step."
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
