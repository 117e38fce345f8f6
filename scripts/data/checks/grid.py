# SPDX-License-Identifier: Apache-2.0
"""Check that the files of a case are on one grid, by the distance between corners, where deviations are largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import nibabel
import numpy as np

from scripts.data.checks.finding import Finding, Kind
from scripts.errors import UserError
from scripts.images.header import SLICER, VolumeHeader, axes_onto, corner_distance, ending_of
from scripts.images.monai import check_same_grid

LABEL_APART = 0.1
"""Maximum distance between the corners of a label and its image, relative to the smallest side of a voxel. Rounding
in headers stays far below it; a shift of half a voxel, from another convention for the origin, exceeds it."""


def orientation_given(header: VolumeHeader) -> list[Finding]:
    """Check that the header states the directions of the axes."""
    if header.oriented:
        return []
    sentence = (
        f"{header.path} does not state the directions of its axes (NIfTI: sform or qform; NRRD: an anatomical "
        "space). L, P, S is assumed: check that left and right are correct, and rewrite the header."
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
    """Check that a label is on the grid of its image, or on a part of it; the order of its axes may differ."""
    if label.channels > 1:
        sentence = (
            f"The label {label.path} has {label.channels} channels: save it as one channel with a value per class."
        )
        return [Finding(Kind.CHANNELS, sentence, label.path)]
    turned = label.in_axes_of(image)
    start = cut_start(image, label)
    if start is not None:
        return _cut_on_image(image, label, turned, start)
    if turned.shape != image.shape:
        sentence = (
            f"The label {label.path} has {label.size} voxels, but its image {image.path} has {image.size}: resample "
            "the label to the image, or correct which label belongs to which image."
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


def cut_start(image: VolumeHeader, label: VolumeHeader) -> np.ndarray | None:
    """Find where a label that was cropped to its painted part begins in its image; 3D Slicer can crop labels.

    Args:
        image: header of the image.
        label: header of the label, whose axes may be in another order.

    Returns:
        Index of the label's first voxel along the image's axes `(3,)`, which need not be an integer; `None` if the
        label is not smaller than the image, or differs in spacing or direction.
    """
    turned = label.in_axes_of(image)
    smaller = turned.shape != image.shape and all(n <= m for n, m in zip(turned.shape, image.shape, strict=True))
    if not (smaller and np.allclose(image.affine[:3, :3], turned.affine[:3, :3], rtol=0.01, atol=1e-3)):
        return None
    return np.asarray((np.linalg.inv(image.affine) @ turned.affine)[:3, 3])


def _cut_on_image(image: VolumeHeader, label: VolumeHeader, turned: VolumeHeader, start: np.ndarray) -> list[Finding]:
    """Check that the voxels of a cropped label coincide with voxels of its image, and that its position is known."""
    first = start.round()
    moved = image.affine.copy()
    moved[:3, 3] = image.affine[:3, :3] @ first + image.affine[:3, 3]
    apart = corner_distance(replace(image, shape=turned.shape, affine=moved), turned)
    if not apart <= LABEL_APART * min(image.spacing):
        lack = f"begins at voxel {', '.join(f'{index:.4g}' for index in start)} of it, not at a whole one"
    elif (first < 0).any() or (first + turned.shape > image.shape).any():
        lack = f"begins at voxel {', '.join(f'{index:g}' for index in first)} of it and ends outside of it"
    elif not (first.any() or ending_of(label.path) in SLICER):
        # Files without a position have the same origin, even if they belong to different patients.
        lack = "begins at the same corner, as files do whose headers lack the position"
    else:
        return []
    sentence = (
        f"The label {label.path} has {label.size} voxels, but its image {image.path} has {image.size}, and the label "
        f"{lack}. If it is cut to its painted part, export it again on the grid of the image (in 3D Slicer, with the "
        "image as reference volume); otherwise correct which label belongs to which image."
    )
    return [Finding(Kind.SHAPE, sentence, label.path)]


def cut_label(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """Report a label that covers only a part of its image; the rest counts as background."""
    if cut_start(image, label) is None:
        return []
    sentence = (
        f"The label {label.path} has {label.size} voxels, a part of the {image.size} of its image {image.path}: the "
        "rest of the image counts as background, so check that it holds no structure that should be labelled."
    )
    return [Finding(Kind.CUT_LABEL, sentence, label.path)]


def on_image_grid(voxels: np.ndarray, label: VolumeHeader, image: VolumeHeader) -> np.ndarray:
    """Put the voxels of a label on the grid of its image, after `label_on_image` has found no problem.

    Args:
        voxels: `(X, Y, Z)` of the label in the order of its axes.
        label: header of the label.
        image: header of the image.

    Returns:
        Voxels in the order of the image's axes; 0 outside of a cropped label. The result is a view of `voxels` if the
        label covers the whole image.
    """
    turned = nibabel.apply_orientation(voxels, axes_onto(label.affine, image.affine))
    start = cut_start(image, label)
    if start is None:
        return np.asarray(turned)
    whole = np.zeros(image.shape, voxels.dtype)
    whole[tuple(slice(int(at), int(at) + n) for at, n in zip(start.round(), turned.shape, strict=True))] = turned
    return whole


def same_storage_order(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    """Report a label that is stored in a different axis order than its image, because one header may be wrong."""
    if image.axcodes == label.axcodes or not (image.oriented and label.oriented):
        return []
    sentence = (
        f"The label {label.path} is stored as {label.axcodes} and its image as {image.axcodes}: both are "
        "reoriented to RAS according to their headers, so check that the label fits the image."
    )
    return [Finding(Kind.ORIENTATION, sentence, label.path)]
