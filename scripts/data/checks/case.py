# SPDX-License-Identifier: Apache-2.0
"""Intensities of an image file: whether they are numbers, and more than one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np

from scripts.data.cases import Case, images_of
from scripts.data.checks.cohort import Content
from scripts.data.checks.finding import Finding, Kind
from scripts.data.checks.grid import (
    channels_on_one_grid,
    label_on_image,
    number_of_channels,
    orientation_given,
    same_storage_order,
)
from scripts.data.checks.labels import Classes, values_of_label
from scripts.data.labels import Tally, tally
from scripts.data.sizes import resampled_shape
from scripts.errors import UserError
from scripts.images.monai import LARGEST
from scripts.images.read import VolumeHeader, exists, read_header, read_volume


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


@dataclass(frozen=True)
class Expected:
    """What a dataset's YAML says about its volumes.

    Attributes:
        in_channels: of an image.
        spacing: to which volumes are resampled, mm.
        roi_size: patch, voxels.
    """

    in_channels: int
    spacing: Sequence[float]
    roi_size: Sequence[int]


@dataclass(frozen=True)
class CheckedHeaders:
    """A case's headers as far as they can be read.

    Attributes:
        image: header of the first channel's file; `None` if it cannot be read.
        shape: voxels at the training spacing; `None` likewise.
        findings: about them.
    """

    image: VolumeHeader | None
    shape: tuple[int, ...] | None
    findings: list[Finding]


@dataclass
class CheckedVoxels:
    """What is kept of a case's voxels.

    Attributes:
        findings: about them.
        contents: digest of each image file.
        values: of its label; `None` if there is none or it cannot be read.
    """

    findings: list[Finding] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    values: Tally | None = None


def check_headers(case: Case, role: str, expected: Expected) -> CheckedHeaders:
    """Read the headers of a case's files. Files that do not exist are passed over: `checks.lists` names them."""
    findings: list[Finding] = []
    paths = images_of(case)
    images = [_header(path, findings) for path in paths]
    label = _header(case["label"], findings) if "label" in case else None
    for header in [*images, label]:
        findings += orientation_given(header) if header is not None else []
    shape = None
    if all(images):
        findings += number_of_channels(images, expected.in_channels)
        findings += channels_on_one_grid(images)
    if images[0] is not None:
        ras = images[0].in_ras()
        shape = resampled_shape(ras.shape, ras.spacing, expected.spacing)
        findings += _patch_fits(images[0].path, shape, expected)
        findings += _label_fits(images[0], label) if label is not None else []
    return CheckedHeaders(images[0], shape, of_case(findings, case, role))


def check_voxels(case: Case, role: str, classes: Classes) -> CheckedVoxels:
    """Read the voxels of a case's files, one file in memory at a time.

    Args:
        case: of `CaseLists`; its label is opened if it has the entry, which unlabelled cases do not.
        role: its list.
        classes: what its label may hold.
    """
    checked = CheckedVoxels()
    for path in images_of(case):
        read = _volume(path, checked.findings)
        if read is not None and not (wrong := intensities(*read)):
            checked.contents.append(Content(path, case["case"], role, content_digest(*read)))
        elif read is not None:
            checked.findings += wrong
        del read  # before the next file is read
    read = _volume(case["label"], checked.findings) if "label" in case else None
    if read is not None:
        checked.values = tally(read[1])
        checked.findings += values_of_label(case["label"], checked.values, classes)
    return replace(checked, findings=of_case(checked.findings, case, role))


def of_case(findings: Iterable[Finding], case: Case, role: str) -> list[Finding]:
    """Findings about files, with the case that the files belong to."""
    return [replace(finding, case=case["case"], role=role) for finding in findings]


def _label_fits(image: VolumeHeader, label: VolumeHeader) -> list[Finding]:
    return label_on_image(image, label) or same_storage_order(image, label)


def _patch_fits(path: str, shape: Sequence[int], expected: Expected) -> list[Finding]:
    if all(n >= side for n, side in zip(shape, expected.roi_size, strict=True)):
        return []
    sizes = [" x ".join(map(str, size)) for size in (shape, expected.roi_size)]
    sentence = (
        f"{path} is {sizes[0]} voxels large at the training spacing, smaller than the patch of {sizes[1]} (roi_size): "
        "it is padded."
    )
    return [Finding(Kind.SMALL, sentence, path)]


def _header(path: str, findings: list[Finding]) -> VolumeHeader | None:
    if not exists(path):
        return None
    try:
        return read_header(path)
    except UserError as error:
        findings.append(Finding(Kind.UNREADABLE, str(error), path))
        return None


def _volume(path: str, findings: list[Finding]) -> tuple[VolumeHeader, np.ndarray] | None:
    if not exists(path):
        return None
    try:
        return read_volume(path)
    except UserError as error:
        findings.append(Finding(Kind.UNREADABLE, str(error), path))
        return None
