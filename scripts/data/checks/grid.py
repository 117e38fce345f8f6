# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a case lie on one grid, judged in mm where an error of direction is largest: at the corners."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.data.checks.finding import Finding, Kind
from scripts.errors import UserError
from scripts.images.header import VolumeHeader, corner_distance
from scripts.images.monai import check_same_grid

LABEL_APART = 0.1
"""How far the corners of a label may lie from those of its image, in sides of the image's smallest voxel. Rounding in
headers stays far below it; a shift of half a voxel, as other conventions of the origin make, does not."""


def orientation_given(header: VolumeHeader) -> list[Finding]:
    """A file must say where its axes point."""
    if header.oriented:
        return []
    sentence = (
        f"{header.path} does not say where its axes point (a NIfTI file by sform or qform): they are taken as L, P, S, "
        "so look whether left and right are what you think, and write the header anew."
    )
    return [Finding(Kind.NO_ORIENTATION, sentence, header.path)]


def number_of_channels(headers: Sequence[VolumeHeader], in_channels: int) -> list[Finding]:
    """All files of an image together must have the dataset's channels."""
    found = sum(header.channels for header in headers)
    if found == in_channels:
        return []
    sentence = (
        f"{headers[0].path} has {found} channels with the files listed beside it, but in_channels is {in_channels}: "
        "correct one of them."
    )
    return [Finding(Kind.CHANNELS, sentence, headers[0].path)]


def channels_on_one_grid(headers: Sequence[VolumeHeader]) -> list[Finding]:
    """Files that are channels of one image, by the rule of the reader that training uses."""
    findings = []
    for other in headers[1:]:
        try:
            check_same_grid(headers[0], other)
        except UserError as error:
            kind = Kind.GRID if headers[0].shape == other.shape else Kind.SHAPE
            findings.append(Finding(kind, str(error), other.path))
    return findings


def label_on_image(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """A label and its image, each turned to RAS as training does: they may be stored in different orders."""
    if label.channels > 1:
        sentence = (
            f"The label {label.path} has {label.channels} channels: write one channel with a value for each class."
        )
        return [Finding(Kind.CHANNELS, sentence, label.path)]
    on, above = image.in_ras(), label.in_ras()
    if on.shape != above.shape:
        sentence = (
            f"The label {label.path} has {label.size} voxels, but its image {image.path} has {image.size}: resample "
            "the label to the image, or correct which belongs to which."
        )
        return [Finding(Kind.SHAPE, sentence, label.path)]
    apart = corner_distance(on, above)
    if not apart <= LABEL_APART * min(on.spacing):
        sentence = (
            f"The label {label.path} lies up to {apart:.4g} mm beside its image {image.path} by what their headers "
            "say: give both the same origin, spacing and direction."
        )
        return [Finding(Kind.GRID, sentence, label.path)]
    return []


def same_storage_order(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """On one grid by what both headers say, but stored in different orders: one of the headers may be wrong."""
    if image.axcodes == label.axcodes or not (image.oriented and label.oriented):
        return []
    sentence = (
        f"The label {label.path} is stored as {label.axcodes} and its image as {image.axcodes}: both are turned to "
        "RAS by what their headers say, so look whether the label lies right."
    )
    return [Finding(Kind.ORIENTATION, sentence, label.path)]
