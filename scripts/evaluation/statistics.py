# SPDX-License-Identifier: Apache-2.0
"""Metrics of a case as rows, one per class; means over cases and classes; bootstrap intervals of the means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.utils import convert_to_tensor
from scipy import stats

from scripts.evaluation.metrics import CONVENTION, METRICS, TOLERANCE_MM, structure_metrics

COLUMNS = ("case", "class", "label", *METRICS, "status")
BACKGROUND = 0
RESAMPLES = 9999
MIN_CASES = 6
"""Minimum number of cases for a 95 % interval. A bootstrap interval of a mean lies within the range of the values. For
a symmetric distribution, the range of n values contains the mean with a probability of 1 - 2 / 2**n. This is 93.75 %
for 5 values, so an interval from 5 cases cannot reach 95 %."""
INTERVAL_NOTE = (
    "The interval is a 95 % percentile bootstrap of the mean Dice over cases. There is none if a class has fewer than "
    f"{MIN_CASES} cases, because even the range from the lowest to the highest of {MIN_CASES - 1} values misses the "
    f"true mean too often (in {2 / 2 ** (MIN_CASES - 1):.2%} of samples of a symmetric distribution)."
)


def case_rows(
    case_name: str,
    prediction: NdarrayOrTensor,
    reference: NdarrayOrTensor,
    spacing_mm: Sequence[float] | None,
    label_names: Mapping[int, str],
    tolerance_mm: float = TOLERANCE_MM,
    members: Mapping[int, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of one case, one row per foreground class or region.

    Args:
        case_name: value of the column `case`.
        prediction: label volume `(D, H, W)`, integer values of any type.
        reference: label volume of the same shape.
        spacing_mm: voxel size along D, H, W in mm; `None` if it is unknown.
        label_names: name of each label value; 0 is background and gets no row. Voxels whose value has no
            name belong to no class.
        tolerance_mm: tolerance of surface Dice in mm.
        members: the label values in the volumes that form each label of `label_names`; labels may overlap (see
            `region_labels`). With `None` each label is one value.

    Returns:
        Dicts with the keys `COLUMNS`, in the order of the label values. `class` is the name, `label` is the value in
        the volumes, and `structure_metrics` describes the other keys.

    Raises:
        ValueError: if a volume is not three-dimensional or has non-integer values, the shapes differ, `spacing_mm` is
            not three positive numbers, or `label_names` has no foreground or repeats a name.
    """
    volumes = _label_volume("prediction", prediction), _label_volume("reference", reference)
    rows = []
    for label, name in foreground(label_names).items():
        values = torch.tensor([label] if members is None else list(members[label]))
        predicted, true = (torch.isin(volume, values.to(volume.dtype)) for volume in volumes)
        metrics = structure_metrics(predicted, true, spacing_mm, tolerance_mm)
        rows.append({"case": case_name, "class": name, "label": label, **metrics})
    return rows


def region_labels(
    label_names: Mapping[int, str], regions: Mapping[str, Sequence[str]]
) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Number the regions 1, 2, ... in their order, and find the label values of each.

    Args:
        label_names: name of each label value in the volumes.
        regions: maps the name of a region to the names of its classes.

    Returns:
        `label_names` and `members` of `case_rows`.

    Raises:
        ValueError: if a region names no class, or one that does not exist or is background.

    Example:
        >>> region_labels({0: "background", 1: "core", 2: "oedema"}, {"whole": ["core", "oedema"], "core": ["core"]})
        ({0: 'background', 1: 'whole', 2: 'core'}, {1: [1, 2], 2: [1]})
    """
    values = {name: label for label, name in foreground(label_names).items()}
    names, members = {BACKGROUND: label_names.get(BACKGROUND, "background")}, {}
    for label, (region, classes) in enumerate(regions.items(), start=1):
        unknown = [name for name in classes if name not in values]
        if unknown or not classes:
            raise ValueError(f"regions: {region} must consist of {', '.join(values)}, got {list(classes)}.")
        names[label], members[label] = region, [values[name] for name in classes]
    return names, members


def summarise(rows: Sequence[Mapping[str, Any]], label_names: Mapping[int, str]) -> dict[str, Any]:
    """Average metrics over cases and foreground classes; all results can be written as JSON.

    Means are taken over the cases of each class and then over the classes, so that every class has the same weight,
    regardless of the number of cases in which it occurs. Rows with status `absent` are not counted.

    Args:
        rows: rows of `case_rows` from any number of cases.
        label_names: as in `case_rows`.

    Returns:
        `mean_<metric>` for each of `METRICS`, `dice_interval` (`[low, high]` or `None`, see `bootstrap_interval`),
        `num_cases` (distinct names), `missed`, `false_positives`, `per_class` (by name: the same means and interval,
        `std_dice` (population), `num_cases` counted, `missed`, `false_positives`), `convention` and `interval_note`.
        A mean over no values is `None`, never NaN.

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
        "dice_interval": bootstrap_interval(_dice_table(rows, list(classes))),
        "num_cases": len({row["case"] for row in rows}),
        "missed": sum(c["missed"] for c in per_class.values()),
        "false_positives": sum(c["false_positives"] for c in per_class.values()),
        "per_class": per_class,
        "convention": CONVENTION,
        "interval_note": INTERVAL_NOTE,
    }


def bootstrap_interval(values: np.ndarray) -> list[float] | None:
    """Compute the 95 % percentile bootstrap interval of the mean over cases and then over classes.

    Cases are resampled with all their classes. The seed is fixed, so that the same values give the same interval.

    Args:
        values: `(N, K)`, one row per case and one column per class; NaN is not counted.

    Returns:
        `[low, high]`; `None` if there are no values, or if a class has some values but fewer than `MIN_CASES`.

    Example:
        >>> bootstrap_interval(np.full((8, 1), 0.5))
        [0.5, 0.5]
    """
    counted = ~np.isnan(values)
    values = values[:, counted.any(axis=0)][counted.any(axis=1)]
    if values.size == 0 or (~np.isnan(values)).sum(axis=0).min() < MIN_CASES:
        return None

    def mean(cases: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = values[cases]  # (..., N, K)
        with np.errstate(invalid="ignore"):  # a class may be missing in a resample; it is then not counted
            of_classes = np.nansum(drawn, axis=-2) / (~np.isnan(drawn)).sum(axis=-2)
        return np.nanmean(of_classes, axis=-1)

    result = stats.bootstrap(
        (np.arange(len(values)),), mean, n_resamples=RESAMPLES, batch=1000, method="percentile", rng=0
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def foreground(label_names: Mapping[int, str]) -> dict[int, str]:
    """Return `label_names` without background, in the order of the label values.

    Raises:
        ValueError: if no foreground is left, a label value is not an integer, or a name occurs twice.
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
        # Without this check, probabilities passed by mistake would score 0 without a warning.
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
        "dice_interval": bootstrap_interval(np.array(dice).reshape(-1, 1)),
        "num_cases": len(counted),
        "missed": statuses["missed"],
        "false_positives": statuses["false_positive"],
    }


def _dice_table(rows: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> np.ndarray:
    """Dice `(N, K)` of N cases and K classes; NaN where a structure is not counted."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    table = np.full((len(cases), len(labels)), np.nan)
    for row in rows:
        table[cases.index(row["case"]), labels.index(row["label"])] = row["dice"]
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    # Metrics in mm are NaN if the spacing of a case is unknown.
    known = [v for v in values if v is not None and not math.isnan(v)]
    return fmean(known) if known else None
