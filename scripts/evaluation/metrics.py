# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface metrics of one binary structure, with one convention for absent structures.

The whole bundle uses this convention:

* absent in the reference and in the prediction (`absent`): every metric is NaN and excluded from means;
* in the reference but not predicted (`missed`), or predicted but not in the reference (`false_positive`): Dice,
  Jaccard and surface Dice are 0, and both distances are the diagonal of the volume, the largest possible distance;
* in both (`found`): all metrics are computed.

MONAI's `HausdorffDistanceMetric` differs in two ways. It takes the larger of the two directed
percentiles, where the semi-supervised literature (MedPy's `hd95`) takes one percentile of both directions pooled; and
with a percentile it gives NaN for a missed structure, and its mean excludes NaN, so that a miss improves the mean.
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
        `(dice, jaccard)`, each in [0, 1]; both NaN if both masks are empty, both 0 if only one is.

    Raises:
        ValueError: if a mask is not three-dimensional or not binary, or the shapes differ.
    """
    return _overlap(*_mask_pair(prediction, reference))


def surface_distances(
    prediction: NdarrayOrTensor, reference: NdarrayOrTensor, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """95 % Hausdorff distance and average surface distance of one structure.

    The surface is every mask voxel with a face neighbour outside the mask; outside the volume counts as outside the
    mask, so mask voxels on the volume's border are surface. Distances are Euclidean, between voxel centres. 95HD is
    the 95th percentile (linear interpolation) of the distances of both directions pooled; ASD is the mean of the
    distances from the predicted surface to the reference's, one direction only. Both are what MedPy 0.5.2 computes as
    `hd95` and `asd`, which gave the published numbers of UA-MT, SS-Net and their successors.

    Args:
        prediction: binary mask `(D, H, W)`, boolean or of zeros and ones.
        reference: binary mask of the same shape.
        spacing: size of a voxel along D, H, W in mm; `None` for distances in voxels.

    Returns:
        `(hd95, asd)`, at least 0, in the unit of `spacing`; NaN if both masks are empty; if only one is, the
        volume's diagonal from corner to corner (longer than any distance between two of its voxels).

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
    """All metrics of one structure, with distances in voxels and in mm, and its status.

    Surface Dice is the fraction of the voxels of both surfaces whose distance to the other surface is at most
    `tolerance_mm` (Nikolov et al. 2018, arXiv:1809.04430), with surfaces and distances as in `surface_distances`. It
    is MONAI's `compute_surface_dice(use_subvoxels=False)`, without a second distance transform.

    Args:
        prediction: binary mask `(D, H, W)`, boolean or of zeros and ones.
        reference: binary mask of the same shape.
        spacing: size of a voxel along D, H, W in mm; `None` if it is unknown.
        tolerance_mm: the largest distance that surface Dice accepts.

    Returns:
        `dice`, `jaccard` in [0, 1], `hd95_voxel`, `asd_voxel` in voxels, `hd95_mm`, `asd_mm` in mm and
        `surface_dice` in [0, 1] (all three NaN if `spacing` is `None`), all floats, and `status`, one of `STATUSES`.
        See `overlap_metrics` and `surface_distances`; the convention for empty masks is at the top of this module.

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
    """95HD, ASD and surface Dice, the distances and the tolerance in the unit of `size`."""
    status = _status(*masks)
    if status == "absent":
        return math.nan, math.nan, math.nan
    if status != "found":
        # The diagonal of the whole volume, not of the box that MONAI crops to before it looks for edges.
        diagonal = math.hypot(*(n * s for n, s in zip(masks[0].shape, size, strict=True)))
        return diagonal, diagonal, 0.0
    there = get_surface_distance(edges[0], edges[1], spacing=size).double().numpy()
    back = get_surface_distance(edges[1], edges[0], spacing=size).double().numpy()
    pooled = np.concatenate([there, back])
    # Affines in files have rounding errors: a shift by one voxel of 1.0000001 mm is within a tolerance of 1 mm.
    within = pooled <= tolerance * (1 + 1e-5)
    # NumPy's percentile, because torch.quantile refuses more than 2**24 values.
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
    # Always on the CPU: MONAI takes other code paths on a GPU, and a report must not depend on the device.
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
    and one in neither is not counted. MONAI's `DiceMetric` either ignores the first or scores the second 1. A
    checkpoint chosen by it may predict structures that are not there.

    Args:
        num_classes: K, background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Dice `(B, K - 1)` per case and foreground class of label volumes `(B, 1, D, H, W)`; NaN if in neither."""
        dice = [
            [overlap_metrics(pred == label, reference == label)[0] for label in range(1, self.num_classes)]
            for pred, reference in zip(y_pred[:, 0], y[:, 0], strict=True)
        ]
        return torch.tensor(dice, device=y_pred.device)

    def aggregate(self) -> torch.Tensor:
        """The mean as a scalar; 0 if no structure was counted."""
        return self.get_buffer().nanmean(dim=0).nanmean().nan_to_num()
