# SPDX-License-Identifier: Apache-2.0
"""Find images whose variance lies in a few voxels, such as metal: a z-score then leaves nothing of the rest.

With the variance V of a volume, the fraction p = 2 `EXTREME` of its voxels can carry `SHARE` of it only if one of them
is at least sqrt(`SHARE` V / p) away from the mean. So most volumes need no percentile.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.transforms import Transform

from scripts.data.checks.finding import Finding, Kind
from scripts.images.header import VolumeHeader

EXTREME = 0.001  # fraction of voxels at either end
SHARE = 0.75  # of the variance
SLAB_VOXELS = 2**20


def extreme_voxels(header: VolumeHeader, voxels: np.ndarray, intensity: Transform | None) -> list[Finding]:
    """Report channels in which extreme voxels carry most of the variance, before and after normalisation.

    Args:
        header: header of the file.
        voxels: `(channels, X, Y, Z)`, finite.
        intensity: the dataset's normalisation of the key `image`; one that clips such voxels prevents the finding.
            `None`: unknown.
    """
    shares = [variance_of_extremes(channel) for channel in voxels]
    if max(shares) > SHARE and intensity is not None:
        try:
            normalised = intensity({"image": torch.from_numpy(voxels.astype(np.float32))})["image"]
            shares = [variance_of_extremes(channel) for channel in np.asarray(normalised)]
        except Exception:  # a transform of the user's own may need other keys; the file alone is judged
            pass
    if max(shares) <= SHARE:
        return []
    sentence = (
        f"{header.path} has values from {voxels.min():g} to {voxels.max():g}, of which the {100 * EXTREME:g} % of "
        f"voxels at either end carry {100 * max(shares):.0f} % of the variance, so that normalisation leaves little "
        "contrast elsewhere: correct these voxels, or clip them in the dataset's intensity (ClipIntensityPercentilesd)."
    )
    return [Finding(Kind.EXTREMES, sentence, header.path)]


def variance_of_extremes(channel: np.ndarray) -> float:
    """The fraction of a channel's variance that vanishes if the `EXTREME` voxels at either end are clipped.

    Args:
        channel: `(X, Y, Z)`.

    Returns:
        In [0, 1]; 0 if it must be below `SHARE`.
    """
    rows = channel.reshape(-1) if channel.flags.c_contiguous else channel.reshape(-1, order="F")
    slabs = [rows[start : start + SLAB_VOXELS] for start in range(0, len(rows), SLAB_VOXELS)]
    mean = sum(float(slab.sum(dtype=np.float64)) for slab in slabs) / len(rows)
    variance = sum(float(np.square(slab - mean, dtype=np.float64).sum()) for slab in slabs) / len(rows)
    farthest = max(float(rows.max()) - mean, mean - float(rows.min()))
    if farthest < math.sqrt(SHARE * variance / (2 * EXTREME)) or variance == 0:
        return 0.0
    clipped = np.clip(rows.astype(np.float64), *np.percentile(rows, (100 * EXTREME, 100 * (1 - EXTREME))))
    return 1 - float(clipped.var()) / variance
