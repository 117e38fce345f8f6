# SPDX-License-Identifier: Apache-2.0
"""Metrics of a case as rows, one per class, and means over cases and classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.utils import convert_to_tensor

from scripts.evaluation.metrics import CONVENTION, METRICS, structure_metrics

COLUMNS = ("case", "class", "label", *METRICS, "status")
BACKGROUND = 0


def case_rows(
    case_name: str,
    prediction: NdarrayOrTensor,
    reference: NdarrayOrTensor,
    spacing_mm: Sequence[float] | None,
    label_names: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Metrics of one case, one row per foreground class.

    Args:
        case_name: value of the column `case`.
        prediction: label volume `(D, H, W)`, whole numbers of any type.
        reference: label volume of the same shape.
        spacing_mm: size of a voxel along D, H, W in mm; `None` if it is unknown.
        label_names: name of each label value; 0 is background and gets no row. Voxels whose value has no
            name belong to no class.

    Returns:
        Dicts with the keys `COLUMNS`, in the order of the label values: `class` is the name, `label` the value in the
        volumes, and the others are described in `structure_metrics`.

    Raises:
        ValueError: if a volume is not three-dimensional or not of whole numbers, the shapes differ, `spacing_mm` is
            not three positive numbers, or `label_names` has no foreground or repeats a name.
    """
    volumes = _label_volume("prediction", prediction), _label_volume("reference", reference)
    rows = []
    for label, name in foreground(label_names).items():
        metrics = structure_metrics(volumes[0] == label, volumes[1] == label, spacing_mm)
        rows.append({"case": case_name, "class": name, "label": label, **metrics})
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], label_names: Mapping[int, str]) -> dict[str, Any]:
    """Means over cases and foreground classes, as values that JSON can represent.

    Means are taken over the cases of each class and then over the classes, so that every class has the same weight,
    regardless of the number of cases in which it occurs. Rows of status `absent` are not counted.

    Args:
        rows: rows of `case_rows`, of any number of cases.
        label_names: as in `case_rows`.

    Returns:
        `mean_<metric>` for each of `METRICS`, `num_cases` (distinct names), `missed`, `false_positives`, `per_class`
        (by name: the same means, `std_dice` (population), `num_cases` counted, `missed`, `false_positives`) and
        `convention`. A mean of nothing is `None`, never NaN.

    Raises:
        ValueError: if a row has a label that `label_names` does not name, or `label_names` is invalid as in
            `case_rows`.
    """
    classes = foreground(label_names)
    unknown = sorted({row["label"] for row in rows} - set(classes))
    if unknown:
        raise ValueError(f"label_names must name every label of rows, but {sorted(classes)} misses {unknown}.")
    per_class = {name: _class_summary([r for r in rows if r["label"] == label]) for label, name in classes.items()}
    means = {f"mean_{m}": _mean([c[f"mean_{m}"] for c in per_class.values()]) for m in METRICS}
    return {
        **means,
        "num_cases": len({row["case"] for row in rows}),
        "missed": sum(c["missed"] for c in per_class.values()),
        "false_positives": sum(c["false_positives"] for c in per_class.values()),
        "per_class": per_class,
        "convention": CONVENTION,
    }


def foreground(label_names: Mapping[int, str]) -> dict[int, str]:
    """`label_names` without background, in the order of the label values.

    Raises:
        ValueError: if no foreground is left, a label value is not a whole number, or a name occurs twice.
    """
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in label_names):
        raise ValueError(f"label_names must have whole numbers as keys, got {list(label_names)}.")
    classes = {label: label_names[label] for label in sorted(label_names) if label != BACKGROUND}
    if not classes:
        raise ValueError(f"label_names must name at least one label other than 0, got {dict(label_names)}.")
    if len(set(classes.values())) < len(classes):
        raise ValueError(f"label_names must give each label a different name, got {dict(label_names)}.")
    return classes


def _label_volume(name: str, array: NdarrayOrTensor) -> torch.Tensor:
    volume = convert_to_tensor(array, device="cpu", track_meta=False)
    if volume.ndim != 3:
        raise ValueError(f"{name} must be a label volume of shape (D, H, W), got shape {tuple(volume.shape)}.")
    if volume.is_floating_point() and not (volume == volume.round()).all():
        # Probabilities passed by mistake would otherwise score 0 without a warning.
        other = volume[volume != volume.round()][0].item()
        raise ValueError(f"{name} must be a label volume of whole numbers, got a voxel of value {other}.")
    return volume


def _class_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = [row for row in rows if row["status"] != "absent"]
    dice = [row["dice"] for row in counted]
    statuses = Counter(row["status"] for row in counted)
    return {
        **{f"mean_{m}": _mean([row[m] for row in counted]) for m in METRICS},
        "std_dice": pstdev(dice) if dice else None,
        "num_cases": len(counted),
        "missed": statuses["missed"],
        "false_positives": statuses["false_positive"],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    # A NaN is a distance in mm of a case whose spacing is unknown.
    known = [v for v in values if v is not None and not math.isnan(v)]
    return fmean(known) if known else None
