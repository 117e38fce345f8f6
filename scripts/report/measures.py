# SPDX-License-Identifier: Apache-2.0
"""Volumes of structures, and what their shape and place say about a segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from scripts.report.pictures import CaseVolumes

LARGE = 0.1
"""A component is large if it has at least this fraction of the voxels of its structure's largest one."""

MIN_AGREEMENT = 3
"""Limits of agreement are given for at least this many cases."""


@dataclass(frozen=True)
class StructureMeasures:
    """One structure of one case.

    Attributes:
        prediction_ml: volume in the prediction, millilitres.
        reference_ml: the same of the reference; `None` without one.
        at_border: whether the prediction has voxels in the first or last slice along an axis, and the reference not.
        large_components: number of large components of the prediction.
    """

    prediction_ml: float
    reference_ml: float | None
    at_border: bool
    large_components: int


def measure(volumes: CaseVolumes, structures: Sequence[str]) -> dict[str, StructureMeasures]:
    """Measure each structure of a case.

    Args:
        volumes: of the case.
        structures: names of classes 1, 2, ...
    """
    millilitres = float(np.prod(volumes.spacing)) / 1000
    measured = {}
    for index, name in enumerate(structures, start=1):
        prediction = volumes.prediction == index
        reference = None if volumes.reference is None else volumes.reference == index
        measured[name] = StructureMeasures(
            int(prediction.sum()) * millilitres,
            None if reference is None else int(reference.sum()) * millilitres,
            _at_border(prediction) and not (reference is not None and _at_border(reference)),
            _large_components(prediction),
        )
    return measured


def _at_border(mask: np.ndarray) -> bool:
    # An axis of one slice is all border.
    axes = [axis for axis in range(3) if mask.shape[axis] > 1]
    return any(bool(np.take(mask, end, axis).any()) for axis in axes for end in (0, -1))


def _large_components(mask: np.ndarray) -> int:
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return 0
    parts, count = ndimage.label(mask[box[0]], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return int((sizes >= LARGE * sizes.max()).sum())


def agreement(
    measured: Mapping[str, Mapping[str, StructureMeasures]], structures: Sequence[str]
) -> list[dict[str, Any]]:
    """Agreement of predicted and reference volumes (Bland and Altman, Lancet 1986), for each structure.

    A case counts if prediction or reference has the structure.

    Args:
        measured: by case and structure.
        structures: names.

    Returns:
        For each structure with a reference in some case: `name`, `pairs` (prediction and reference of each case, ml),
        `num_cases`, `bias` (mean difference, prediction minus reference, ml) and `limits`: bias minus and plus 1.96
        standard deviations of the differences, `None` for fewer than `MIN_AGREEMENT` cases.
    """
    result = []
    for name in structures:
        of_cases = [each[name] for each in measured.values() if name in each]
        pairs = [(m.prediction_ml, m.reference_ml) for m in of_cases if m.reference_ml is not None]
        pairs = [pair for pair in pairs if any(pair)]
        if not pairs:
            continue
        difference = np.array([p - r for p, r in pairs])
        bias, limits = float(difference.mean()), None
        if len(pairs) >= MIN_AGREEMENT:
            spread = 1.96 * float(difference.std(ddof=1))
            limits = (bias - spread, bias + spread)
        result.append({"name": name, "pairs": pairs, "num_cases": len(pairs), "bias": bias, "limits": limits})
    return result
