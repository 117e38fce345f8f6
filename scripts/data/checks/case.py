# SPDX-License-Identifier: Apache-2.0
"""Check the files of one case, first the headers and then the voxels; each file is read once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import nibabel
import numpy as np
import torch
from monai.transforms import Transform

from scripts.data.checks.cohort import Content
from scripts.data.checks.finding import Finding, Kind
from scripts.data.checks.grid import (
    channels_on_one_grid,
    cut_label,
    label_on_image,
    number_of_channels,
    orientation_given,
    same_storage_order,
)
from scripts.data.checks.labels import names_agree, names_declared, values_of_label
from scripts.data.labels import Tally, looks_like_label, tally
from scripts.data.spec import Case, DatasetSpec, images_of
from scripts.errors import UserError
from scripts.images.header import VolumeHeader, resampled_shape
from scripts.images.monai import LARGEST
from scripts.images.read import Volume, exists, open_volume
from scripts.progress import Progress


@dataclass(frozen=True)
class OpenCase:
    """A case with the headers of its files.

    Attributes:
        case: entry of `CaseLists`.
        role: list of the case in `CaseLists`.
        images: files of the image; `None` for a file that does not exist or cannot be read.
        label: label file; `None` if there is none or it cannot be read.
        shape: size in voxels at the training spacing; `None` until `check_headers` sets it, and for an unreadable
            image.
        findings: problems with the headers.
    """

    case: Case
    role: str
    images: list[Volume | None]
    label: Volume | None
    shape: tuple[int, ...] | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def image(self) -> VolumeHeader | None:
        """Header of the first image file; `None` if it cannot be read."""
        return None if self.images[0] is None else self.images[0].header


@dataclass
class CheckedVoxels:
    """Results of reading the voxels of a case.

    Attributes:
        findings: problems with the voxels.
        contents: digest of each image file.
        values: label values; `None` if there is none or it cannot be read.
    """

    findings: list[Finding] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    values: Tally | None = None


def open_case(case: Case, role: str = "") -> OpenCase:
    """Parse the headers of a case's files. Missing files are not reported here, but by `missing_files`."""
    findings: list[Finding] = []
    images = [_opened(path, findings) for path in images_of(case)]
    label = _opened(case["label"], findings) if "label" in case else None
    return OpenCase(case, role, images, label, findings=_of_case(findings, case, role))


def check_headers(case: Case, role: str, dataset: DatasetSpec) -> OpenCase:
    """Open a case, and compare its headers with each other and with the dataset's settings."""
    opened = open_case(case, role)
    images = [volume.header for volume in opened.images if volume is not None]
    label = None if opened.label is None else opened.label.header
    findings: list[Finding] = []
    for header in [*images, *([] if label is None else [label])]:
        findings += orientation_given(header)
    if len(images) == len(opened.images):
        findings += number_of_channels(images, dataset.in_channels)
        findings += channels_on_one_grid(images)
    shape = None
    if opened.image is not None:
        ras = opened.image.in_ras()
        shape = resampled_shape(ras.shape, ras.spacing, dataset.spacing)
        findings += _patch_fits(opened.image.path, shape, dataset)
        if label is not None:
            findings += label_on_image(opened.image, label) or [
                *same_storage_order(opened.image, label),
                *cut_label(opened.image, label),
            ]
            # A file names each value, even if several values form one class here.
            named = zip(dataset.all_values, dataset.label_names, strict=True)
            findings += names_declared(label, {values[0]: name for values, name in named if len(values) == 1})
    return replace(opened, shape=shape, findings=opened.findings + _of_case(findings, case, role))


def check_all_headers(cases: Iterable[tuple[Case, str]], dataset: DatasetSpec, progress: Progress) -> list[OpenCase]:
    """Run `check_headers` for each case, and compare the names of segments; this takes milliseconds per file.

    Labels of unlabelled cases that another program made may have different names.
    """
    checked = [check_headers(case, role, dataset) for case, role in progress(cases, "reading headers")]
    labels = {each.label.header.path: each for each in checked if each.label and each.role != "unlabelled"}
    for finding in names_agree([each.label.header for each in labels.values() if each.label is not None]):
        opened = labels[finding.file]
        opened.findings.extend(_of_case([finding], opened.case, opened.role))
    return checked


def check_voxels(opened: OpenCase, dataset: DatasetSpec) -> CheckedVoxels:
    """Read the voxels of a case's files, one file in memory at a time.

    Args:
        opened: result of `check_headers`; the label file of an unlabelled case is from another program.
        dataset: declares the label values.
    """
    checked = CheckedVoxels()
    for image in filter(None, opened.images):
        voxels = _voxels(image, checked.findings)
        if voxels is None:
            continue
        wrong = intensities(image.header, voxels)
        checked.findings += wrong
        if not any(finding.is_error for finding in wrong):
            checked.findings += extreme_voxels(image.header, voxels, dataset.intensity)
            digest = content_digest(image.header, voxels)
            checked.contents.append(Content(image.header.path, opened.case["case"], opened.role, digest))
        del voxels  # free the memory before the next file is read
    voxels = None if opened.label is None else _voxels(opened.label, checked.findings)
    if voxels is not None:
        checked.values = tally(voxels)
        if opened.image is not None and (around := prod(opened.image.shape) - voxels.size) > 0:
            checked.values.whole[dataset.all_values[0][0]] += around  # background around a cropped label
        checked.findings += values_of_label(opened.case["label"], checked.values, dataset)
    return replace(checked, findings=_of_case(checked.findings, opened.case, opened.role))


def intensities(header: VolumeHeader, voxels: np.ndarray) -> list[Finding]:
    """Check that each channel is finite, not constant, and not a label.

    Args:
        header: header of the file.
        voxels: `(channels, X, Y, Z)`.
    """
    findings = []
    for number, channel in enumerate(voxels):
        name = header.path + (f" (channel {number})" if len(voxels) > 1 else "")
        # The minimum of a channel with a NaN is NaN, so this check needs no mask with the size of the volume.
        lowest, highest = channel.min(), channel.max()
        if not (lowest >= -LARGEST and highest <= LARGEST):
            nans, infinite = int(np.isnan(channel).sum()), int((np.abs(channel) > LARGEST).sum())
            sentence = (
                f"{name} has {nans} NaN and {infinite} infinite voxels, which turn every normalised voxel into NaN: "
                "replace these values, or remove the case."
            )
            findings.append(Finding(Kind.NOT_FINITE, sentence, header.path))
        elif lowest == highest:
            sentence = f"{name} has the value {lowest:g} in every voxel: replace it, or remove the case."
            findings.append(Finding(Kind.CONSTANT, sentence, header.path))
        elif looks_like_label(channel):
            sentence = f"{name} holds only a few whole numbers, as labels do: remove the case, unless it is an image."
            findings.append(Finding(Kind.LABEL_LIKE, sentence, header.path))
    return findings


def content_digest(header: VolumeHeader, voxels: np.ndarray) -> bytes:
    """Hash an image's intensities in RAS order, independently of file format, data type and storage order.

    Args:
        header: header of the file.
        voxels: `(channels, X, Y, Z)`.
    """
    orientation = nibabel.io_orientation(header.affine)
    digest = hashlib.sha256()
    for channel in voxels:
        turned = nibabel.apply_orientation(channel, orientation)
        digest.update(repr(turned.shape).encode())
        for plane in turned:  # one at a time: a copy of the whole volume would double the memory
            digest.update((np.ascontiguousarray(plane, dtype=np.float32) + np.float32(0)).data)  # -0 becomes 0
    return digest.digest()


def _of_case(findings: Iterable[Finding], case: Case, role: str) -> list[Finding]:
    """Add case and role to findings about files."""
    return [replace(finding, case=case["case"], role=role) for finding in findings]


def _patch_fits(path: str, shape: Sequence[int], dataset: DatasetSpec) -> list[Finding]:
    if all(n >= side for n, side in zip(shape, dataset.roi_size, strict=True)):
        return []
    sizes = [" x ".join(map(str, size)) for size in (shape, dataset.roi_size)]
    sentence = (
        f"{path} has {sizes[0]} voxels at the training spacing, fewer than the patch of {sizes[1]} (roi_size); it is "
        "padded."
    )
    return [Finding(Kind.SMALL, sentence, path)]


def _opened(path: str, findings: list[Finding]) -> Volume | None:
    if not exists(path):
        return None
    try:
        return open_volume(path)
    except UserError as error:
        findings.append(Finding(Kind.UNREADABLE, str(error), path))
        return None


def _voxels(volume: Volume, findings: list[Finding]) -> np.ndarray | None:
    try:
        return volume.voxels()
    except UserError as error:
        findings.append(Finding(Kind.UNREADABLE, str(error), volume.header.path))
        return None


EXTREME = 0.001  # fraction of voxels at either end
SHARE = 0.75  # of the variance
SLAB_VOXELS = 2**20


def extreme_voxels(header: VolumeHeader, voxels: np.ndarray, intensity: Transform | None) -> list[Finding]:
    """Report channels in which extreme voxels, such as metal, carry most of the variance, even after normalisation.

    A z-score then leaves almost no contrast in the rest of the volume.

    Args:
        header: header of the file.
        voxels: `(channels, X, Y, Z)`, finite.
        intensity: the dataset's normalisation of the key `image`, or `None` if it is unknown. There is no finding if it
            clips such voxels.
    """
    shares = [variance_of_extremes(channel) for channel in voxels]
    if max(shares) > SHARE and intensity is not None:
        try:
            normalised = intensity({"image": torch.from_numpy(voxels.astype(np.float32))})["image"]
            shares = [variance_of_extremes(channel) for channel in np.asarray(normalised)]
        except Exception:  # a user's transform may need other keys; check the raw values
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
    """Return the fraction of a channel's variance that vanishes if the `EXTREME` voxels at either end are clipped.

    If V is the variance of a volume, a fraction p = 2 `EXTREME` of its voxels can carry `SHARE` of V only if one of
    them is at least sqrt(`SHARE` V / p) away from the mean. Therefore most volumes need no percentiles.

    Args:
        channel: `(X, Y, Z)`.

    Returns:
        A fraction in [0, 1]; 0 if it must be below `SHARE`.
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
