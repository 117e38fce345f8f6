# SPDX-License-Identifier: Apache-2.0
"""Intensities of an image file: whether they are numbers, and more than one."""

from __future__ import annotations

import hashlib

import nibabel
import numpy as np

from scripts.data.checks.finding import Finding, Kind
from scripts.data.reading import LARGEST
from scripts.data.volumes import VolumeHeader


def intensities(header: VolumeHeader, voxels: np.ndarray) -> list[Finding]:
    """Each channel must hold finite values, and more than one of them.

    Args:
        header: of the file.
        voxels: `(channels, X, Y, Z)`.
    """
    findings = []
    for number, channel in enumerate(voxels):
        name = header.path + (f" (channel {number})" if len(voxels) > 1 else "")
        # The extremes of a channel with a NaN are NaN: no mask as large as the volume is made for a sound one.
        lowest, highest = channel.min(), channel.max()
        if not (lowest >= -LARGEST and highest <= LARGEST):
            nans, infinite = int(np.isnan(channel).sum()), int((np.abs(channel) > LARGEST).sum())
            sentence = (
                f"{name} holds {nans} voxels that are NaN and {infinite} that are infinite, which turn every "
                "normalised voxel into NaN: write a number there, or leave the case out."
            )
            findings.append(Finding(Kind.NOT_FINITE, sentence, header.path))
        elif lowest == highest:
            sentence = f"{name} is {lowest:g} in every voxel, so there is nothing to see: replace it or leave it out."
            findings.append(Finding(Kind.CONSTANT, sentence, header.path))
    return findings


def content_digest(header: VolumeHeader, voxels: np.ndarray) -> bytes:
    """Digest of an image's intensities on axes turned to RAS, the same for every format, type and storage order.

    Args:
        header: of the file.
        voxels: `(channels, X, Y, Z)`.
    """
    orientation = nibabel.io_orientation(header.affine)
    digest = hashlib.sha256()
    for channel in voxels:
        turned = nibabel.apply_orientation(channel, orientation)
        digest.update(repr(turned.shape).encode())
        for plane in turned:  # one at a time: a copy of the whole volume would double the memory
            digest.update(np.ascontiguousarray(plane, dtype=np.float32) + np.float32(0))  # -0 becomes 0
    return digest.digest()
