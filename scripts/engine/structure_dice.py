# SPDX-License-Identifier: Apache-2.0
"""Mean Dice while training, by the convention of the evaluation's report."""

from __future__ import annotations

import torch
from monai.metrics import CumulativeIterationMetric

from scripts.functional.segmentation_metrics import overlap_metrics


class StructureDice(CumulativeIterationMetric):
    """Mean Dice over cases of each foreground class, then over classes, for MONAI's `IgniteMetricHandler`.

    As in `scripts.functional.report.summarise`: a structure that is predicted where the reference has none is 0, one
    that is in neither is not counted. MONAI's `DiceMetric` leaves out the first too, or counts the second as 1, so that
    a checkpoint chosen by it may be one that invents structures.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One-hot `(B, K, D, H, W)` to Dice of each case and foreground class `(B, K - 1)`, NaN for one in neither."""
        dice = [
            [overlap_metrics(of_pred, of_reference)[0] for of_pred, of_reference in zip(pred, reference, strict=True)]
            for pred, reference in zip(y_pred[:, 1:], y[:, 1:], strict=True)
        ]
        return torch.tensor(dice, device=y_pred.device)

    def aggregate(self) -> torch.Tensor:
        """The mean, a scalar; 0 where there was nothing to count."""
        return self.get_buffer().nanmean(dim=0).nanmean().nan_to_num()
