# SPDX-License-Identifier: Apache-2.0
"""Check that the files of a case are on one grid, by the distance of their corners, where errors are largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.data.checks.finding import Finding, Kind
from scripts.errors import UserError
from scripts.images.header import VolumeHeader, corner_distance
from scripts.images.monai import check_same_grid

LABEL_APART = 0.1
"""Largest distance between the corners of a label and of its image, relative to the smallest side of a voxel. Rounding
in headers stays far below it; a shift of half a voxel, from another convention for the origin, exceeds it."""


def orientation_given(header: VolumeHeader) -> list[Finding]:
    """Check that the header states the directions of the axes."""
    if header.oriented:
        return []
    sentence = (
        f"{header.path} does not state the directions of its axes (NIfTI: sform or qform). L, P, S is "
        "assumed: check that left and right are correct, and rewrite the header."
    )
    return [Finding(Kind.NO_ORIENTATION, sentence, header.path)]


def number_of_channels(headers: Sequence[VolumeHeader], in_channels: int) -> list[Finding]:
    """Check that the files of an image together have `in_channels` channels."""
    found = sum(header.channels for header in headers)
    if found == in_channels:
        return []
    sentence = (
        f"{headers[0].path} has {found} channels, with the other files of the image, but in_channels is {in_channels}: "
        "correct one of them."
    )
    return [Finding(Kind.CHANNELS, sentence, headers[0].path)]


def channels_on_one_grid(headers: Sequence[VolumeHeader]) -> list[Finding]:
    """Check that the channels of an image are on one grid, by the rule of the image reader."""
    findings = []
    for other in headers[1:]:
        try:
            check_same_grid(headers[0], other)
        except UserError as error:
            kind = Kind.GRID if headers[0].shape == other.shape else Kind.SHAPE
            findings.append(Finding(kind, str(error), other.path))
    return findings


def label_on_image(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """Check that a label is on the grid of its image; the order of its axes may differ, as in training."""
    if label.channels > 1:
        sentence = (
            f"The label {label.path} has {label.channels} channels: save it as one channel with a value per class."
        )
        return [Finding(Kind.CHANNELS, sentence, label.path)]
    turned = label.in_axes_of(image)
    if turned.shape != image.shape:
        sentence = (
            f"The label {label.path} has {label.size} voxels, but its image {image.path} has {image.size}: resample "
            f"the label to the image, or correct which label belongs to which image.{_cut_hint(image, turned)}"
        )
        return [Finding(Kind.SHAPE, sentence, label.path)]
    apart = corner_distance(image, turned)
    if not apart <= LABEL_APART * min(image.spacing):
        sentence = (
            f"The label {label.path} is up to {apart:.4g} mm away from its image {image.path} according to their "
            "headers: give both the same origin, spacing and direction."
        )
        return [Finding(Kind.GRID, sentence, label.path)]
    return []


def _cut_hint(image: VolumeHeader, label: VolumeHeader) -> str:
    """What to do about a label that was cut to its painted part, as 3D Slicer does on request."""
    inside = all(n <= of_image for n, of_image in zip(label.shape, image.shape, strict=True))
    if not (inside and np.allclose(image.affine[:3, :3], label.affine[:3, :3], rtol=0.01, atol=1e-3)):
        return ""
    return (
        " It seems to be cut to its painted part: export it again on the grid of the image (in 3D Slicer, with the "
        "image as reference volume)."
    )


def same_storage_order(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """Report a label on the grid of its image that is stored in another axis order: one header may be wrong."""
    if image.axcodes == label.axcodes or not (image.oriented and label.oriented):
        return []
    sentence = (
        f"The label {label.path} is stored as {label.axcodes} and its image as {image.axcodes}: both are "
        "reoriented to RAS according to their headers, so check that the label fits the image."
    )
    return [Finding(Kind.ORIENTATION, sentence, label.path)]
