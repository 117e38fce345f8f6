# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface metrics of one binary structure, with one convention for absent structures.

The whole bundle uses this convention:

* A structure that is absent in the reference and in the prediction (`absent`): every metric is NaN and excluded from
  means.
* A structure that is in the reference but not predicted (`missed`), or predicted but not in the reference
  (`false_positive`): Dice, Jaccard and surface Dice are 0, and both distances are the diagonal of the volume, the
  largest possible distance.
* A structure that is in both (`found`): all metrics are computed.

MONAI's `HausdorffDistanceMetric` differs in two ways. First, it takes the larger of the two directed percentiles,
whereas the semi-supervised literature (MedPy's `hd95`) takes one percentile of the pooled distances of both directions.
Second, with a percentile it gives NaN for a missed structure and excludes NaN from its mean, so that a missed structure
improves the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import get_mask_edges, get_surface_distance
from monai.utils import convert_to_tensor

STATUSES = ("found", "missed", "false_positive", "absent")
METRICS = ("dice", "jaccard", "hd95_voxel", "asd_voxel", "hd95_mm", "asd_mm", "surface_dice")
TOLERANCE_MM = 1.0
CONVENTION = (
    "A structure absent in reference and prediction is not counted; one that is missed, or predicted where the "
    "reference has none, counts with Dice, Jaccard and surface Dice 0 and distances equal to the diagonal of the "
    "volume."
)


def overlap_metrics(prediction: NdarrayOrTensor, reference: NdarrayOrTensor) -> tuple[float, float]:
    """Dice and Jaccard of one structure.

    Args:
        prediction: binary mask `(D, H, W)`, boolean or of zeros and ones.
        reference: binary mask of the same shape.

    Returns:
        `(dice, jaccard)`, each in [0, 1]. Both are NaN if both masks are empty, and 0 if only one is empty.

    Raises:
        ValueError: if a mask is not three-dimensional or not binary, or the shapes differ.
    """
    return _overlap(*_mask_pair(prediction, reference))


def surface_distances(
    prediction: NdarrayOrTensor, reference: NdarrayOrTensor, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """95 % Hausdorff distance and average surface distance of one structure.

    The surface consists of the mask voxels with a face neighbour outside the mask. Everything outside the volume counts
    as outside the mask, so mask voxels on the border of the volume belong to the surface. Distances are Euclidean,
    between voxel centres. 95HD is the 95th percentile (linear interpolation) of the pooled distances of both
    directions. ASD is the mean distance from the predicted surface to the reference surface, in this direction only.
    Both equal `hd95` and `asd` of MedPy 0.5.2, which were used for the published numbers of UA-MT, SS-Net and their
    successors.

    Args:
        prediction: binary mask `(D, H, W)`, boolean or of zeros and ones.
        reference: binary mask of the same shape.
        spacing: voxel size along D, H, W in mm; `None` for distances in voxels.

    Returns:
        `(hd95, asd)`, at least 0, in the unit of `spacing`. Both are NaN if both masks are empty. If only one is empty,
        both are the volume's diagonal from corner to corner (longer than any distance between two of its voxels).

    Raises:
        ValueError: if a mask is not three-dimensional or not binary, the shapes differ, or `spacing` is not three
            positive finite numbers.
    """
    masks = _mask_pair(prediction, reference)
    size = (1.0, 1.0, 1.0) if spacing is None else _checked_spacing(spacing)
    return _distances(masks, get_mask_edges(*masks), size, TOLERANCE_MM)[:2]


def structure_metrics(
    prediction: NdarrayOrTensor,
    reference: NdarrayOrTensor,
    spacing: Sequence[float] | None,
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, Any]:
    """Compute all metrics of one structure, with distances in voxels and in mm, and its status.

    Surface Dice is the fraction of the voxels of both surfaces whose distance to the other surface is at most
    `tolerance_mm` (Nikolov et al. 2018, arXiv:1809.04430), with surfaces and distances as in `surface_distances`. It
    equals MONAI's `compute_surface_dice(use_subvoxels=False)`, but needs no second distance transform.

    Args:
        prediction: binary mask `(D, H, W)`, boolean or of zeros and ones.
        reference: binary mask of the same shape.
        spacing: voxel size along D, H, W in mm; `None` if it is unknown.
        tolerance_mm: maximum distance in mm that surface Dice accepts.

    Returns:
        Floats `dice` and `jaccard` in [0, 1], `hd95_voxel` and `asd_voxel` in voxels, `hd95_mm` and `asd_mm` in mm, and
        `surface_dice` in [0, 1] (the last three are NaN if `spacing` is `None`); and `status`, one of `STATUSES`. See
        `overlap_metrics` and `surface_distances`; the convention for empty masks is at the top of this module.

    Raises:
        ValueError: as in `surface_distances`.
    """
    masks = _mask_pair(prediction, reference)
    size_mm = None if spacing is None else _checked_spacing(spacing)
    edges = get_mask_edges(*masks)
    in_voxels = _distances(masks, edges, (1.0, 1.0, 1.0), tolerance_mm)[:2]
    in_mm = (math.nan,) * 3 if size_mm is None else _distances(masks, edges, size_mm, tolerance_mm)
    values = (*_overlap(*masks), *in_voxels, *in_mm)
    return {**dict(zip(METRICS, values, strict=True)), "status": _status(*masks)}


def _overlap(prediction: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    common = int((prediction & reference).sum())
    total = int(prediction.sum()) + int(reference.sum())
    if total == 0:
        return math.nan, math.nan
    return 2 * common / total, common / (total - common)


def _distances(
    masks: tuple[torch.Tensor, torch.Tensor],
    edges: tuple[torch.Tensor, torch.Tensor],
    size: tuple[float, float, float],
    tolerance: float,
) -> tuple[float, float, float]:
    """Compute 95HD, ASD and surface Dice; distances and tolerance are in the unit of `size`."""
    status = _status(*masks)
    if status == "absent":
        return math.nan, math.nan, math.nan
    if status != "found":
        # The diagonal of the whole volume, not of the box that MONAI crops before it computes surfaces.
        diagonal = math.hypot(*(n * s for n, s in zip(masks[0].shape, size, strict=True)))
        return diagonal, diagonal, 0.0
    there = get_surface_distance(edges[0], edges[1], spacing=size).double().numpy()
    back = get_surface_distance(edges[1], edges[0], spacing=size).double().numpy()
    pooled = np.concatenate([there, back])
    # Allow for rounding errors in affines: a shift by one voxel of 1.0000001 mm is within a tolerance of 1 mm.
    within = pooled <= tolerance * (1 + 1e-5)
    # NumPy's percentile, because torch.quantile fails with more than 2**24 values.
    return float(np.percentile(pooled, 95)), float(there.mean()), float(within.mean())


def _status(prediction: torch.Tensor, reference: torch.Tensor) -> str:
    if reference.any():
        return "found" if prediction.any() else "missed"
    return "false_positive" if prediction.any() else "absent"


def _mask_pair(prediction: NdarrayOrTensor, reference: NdarrayOrTensor) -> tuple[torch.Tensor, torch.Tensor]:
    masks = _mask("prediction", prediction), _mask("reference", reference)
    if masks[0].shape != masks[1].shape:
        raise ValueError(
            f"prediction must have the shape of reference, {tuple(masks[1].shape)}, got {tuple(masks[0].shape)}."
        )
    return masks


def _mask(name: str, array: NdarrayOrTensor) -> torch.Tensor:
    # Always on the CPU: MONAI uses different code on a GPU, and a report must not depend on the device.
    mask = convert_to_tensor(array, device="cpu", track_meta=False)
    if mask.ndim != 3:
        raise ValueError(f"{name} must be three-dimensional (D, H, W), got shape {tuple(mask.shape)}.")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        other = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{name} must be binary, of zeros and ones only, got a voxel of value {other}.")
    return mask.bool()


def _checked_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    try:
        size = tuple(float(s) for s in spacing)
    except (TypeError, ValueError):
        size = ()
    if len(size) != 3 or not all(math.isfinite(s) and s > 0 for s in size):
        raise ValueError(f"spacing must be three positive finite numbers in mm (D, H, W), got {spacing!r}.")
    return size


class StructureDice(CumulativeIterationMetric):
    """Dice of each foreground class, averaged over cases and then over classes, for MONAI's `IgniteMetricHandler`.

    As in `scripts.evaluation.statistics.summarise`, a structure that is predicted but not in the reference scores 0,
    and a structure in neither is not counted. MONAI's `DiceMetric` either ignores the former or gives the latter a
    score of 1, so a checkpoint that is chosen by it may predict structures that do not exist.

    Args:
        num_classes: K, background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Dice `(B, K - 1)` of cases and foreground classes from label volumes `(B, 1, D, H, W)`; NaN if in neither."""
        dice = [
            [overlap_metrics(pred == label, reference == label)[0] for label in range(1, self.num_classes)]
            for pred, reference in zip(y_pred[:, 0], y[:, 0], strict=True)
        ]
        return torch.tensor(dice, device=y_pred.device)

    def aggregate(self) -> torch.Tensor:
        """Return the mean as a scalar; 0 if no structure was counted."""
        return self.get_buffer().nanmean(dim=0).nanmean().nan_to_num()
