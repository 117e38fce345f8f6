# SPDX-License-Identifier: Apache-2.0
"""Output folders of evaluations, made without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.evaluation.report import write_report
from scripts.evaluation.statistics import case_rows
from scripts.images.write import write_volume

SPACING = (1.0, 1.5, 3.0)


def ball(shape: Sequence[int], centre_mm: Sequence[float], radius_mm: float, spacing=SPACING) -> np.ndarray:
    """A ball, bool, whose centre is given from the centre of the first voxel."""
    place = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    return sum((x - c) ** 2 for x, c in zip(place, centre_mm, strict=True)) <= radius_mm**2


def rotated(spacing: Sequence[float] = SPACING, degrees: float = 20) -> np.ndarray:
    """An affine whose axes point to P, L and S, turned about the last of them."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    axes = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ axes * spacing, (3, -40, 17)
    return affine


def write_evaluation(
    folder: Path,
    names: Sequence[str],
    structures: Sequence[str] = ("organ",),
    shape: tuple[int, int, int] = (24, 20, 12),
    empty_references: bool = False,
    distinct: int | None = None,
) -> Path:
    """An output folder as `evaluating` leaves it; the error of a case grows with its position.

    With `distinct`, that many cases have files of their own, and the others have the same.
    """
    names, copies = names[:distinct], names[distinct:] if distinct else []
    rows, listed = [], []
    affine, label_names = rotated(), ["background", *structures]
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        reference = np.zeros(shape, np.uint8)
        prediction = np.zeros_like(reference)
        size = np.array(shape) * SPACING
        for index in range(1, len(label_names)):
            centre = size * (0.3 + 0.4 * index / len(label_names))
            radius = 0.22 * min(size)
            reference[ball(shape, centre, radius)] = index
            prediction[ball(shape, centre + np.array([0, number * 6 / len(names), 0]), radius)] = index
        if empty_references:
            reference[:] = 0
        image = (100 * (reference > 0) + rng.normal(0, 10, shape)).astype(np.float32)
        paths = {"image": folder / f"images/{number}.nii.gz"}
        paths |= {kind: folder / f"predictions/{number}_{kind}.nii.gz" for kind in ("prediction", "reference")}
        for kind, volume in (("image", image), ("prediction", prediction), ("reference", reference)):
            write_volume(paths[kind], volume, affine)
        rows += case_rows(name, prediction, reference, SPACING, dict(enumerate(label_names)))
        listed.append({"case": name, "image": str(paths["image"])})
        listed[-1] |= {kind: paths[kind].name for kind in ("prediction", "reference")}
    for number, name in enumerate(copies):
        of_case = len(structures) * (number % distinct)
        rows += [{**row, "case": name} for row in rows[of_case : of_case + len(structures)]]
        listed.append({**listed[number % distinct], "case": name})
    write_report(rows, dict(enumerate(label_names)), folder, {"surface_tolerance_mm": 1.0})
    (folder / "predictions/cases.json").write_text(json.dumps({"label_names": label_names, "cases": listed}))
    return folder
