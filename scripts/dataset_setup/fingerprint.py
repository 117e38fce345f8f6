# SPDX-License-Identifier: Apache-2.0
"""Measure a set of volumes: sizes, spacings, label values and intensities. One case is in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import nibabel
import numpy as np

from scripts.data.checks.grid import channels_on_one_grid, cut_start, label_on_image, on_image_grid
from scripts.data.checks.labels import names_agree, names_of_segments, whole_numbers
from scripts.data.labels import Tally, looks_like_label, tally
from scripts.dataset_setup.layouts import FoundCase
from scripts.dataset_setup.roles import Roles
from scripts.errors import UserError
from scripts.images.header import VolumeHeader
from scripts.images.read import Volume, open_volume
from scripts.progress import Progress

INTENSITY_CASES = 40  # at most this many labelled training cases are sampled for intensities
VOXELS_PER_CASE = 10_000  # approximate number of foreground voxels sampled per case, evenly spaced
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Grid:
    """The grid of an image with its axes in RAS order, as in training.

    Attributes:
        shape: size in voxels.
        spacing: voxel size in mm.
        channels: number of channels in all files of the image together.
        time_axis: whether the header declares the axis of the channels to be time.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    channels: int
    time_axis: bool = False


@dataclass
class LabelValues:
    """Values in label files.

    Attributes:
        cases: number of label files that have each value.
        voxels: number of voxels that have each value, in all label files together.
        files: the values in each label file.
    """

    cases: Counter[int] = field(default_factory=Counter)
    voxels: Counter[int] = field(default_factory=Counter)
    files: list[set[int]] = field(default_factory=list)

    def add(self, values: Tally) -> None:
        """Add the values of one file."""
        self.cases.update(values.whole.keys())
        self.voxels.update(values.whole)
        self.files.append(set(values.whole))


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel in the sampled cases.

    Attributes:
        minimum: lowest value of a volume; the median over the cases.
        low: 0.5th percentile of the foreground voxels of all cases.
        high: 99.5th percentile of the same voxels.
    """

    minimum: float
    low: float
    high: float


@dataclass(frozen=True)
class Fingerprint:
    """Measured properties of a set of volumes.

    Attributes:
        grids: grid of each case.
        labels: values in all label files.
        intensities: one entry per channel.
        sampled: number of cases whose intensities were sampled.
        segments: names of label values in the headers of label files.
        label_like: images of the sampled and the unlabelled cases that look like labels.
        cut: labels that cover only a part of their image.
    """

    grids: list[Grid]
    labels: LabelValues
    intensities: list[Intensity]
    sampled: int
    label_like: list[str]
    segments: dict[int, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Files:
    """The files of a case, with parsed headers."""

    images: list[Volume]
    label: Volume | None

    @property
    def image(self) -> VolumeHeader:
        return self.images[0].header


def measure(roles: Roles, ignore_value: int | None, progress: Progress) -> Fingerprint:
    """Read all headers, labels and unlabelled images, and the images of up to `INTENSITY_CASES` labelled cases.

    Args:
        roles: the cases.
        ignore_value: label value of voxels to ignore (`None`: no such value).
        progress: see `Progress`.

    Raises:
        UserError: for an unreadable file, cases with different numbers of channels, channels or labels
            that are not on the grid of their image, or label values that are not integers.
    """
    cases = [_open(case) for case in progress(roles.all, "reading headers")]
    grids = [_grid_of(case) for case in cases]
    _check_channels(cases, grids)
    _check_labels(cases)
    headers = [case.label.header for case in cases if case.label is not None]
    for problem in names_agree(headers):
        raise UserError(problem.sentence)
    values = LabelValues()
    chosen = {id(case) for case in evenly(roles.labelled, INTENSITY_CASES)}
    samples: list[list[tuple[float, np.ndarray]]] = []
    label_like: list[str] = []
    for found, case in progress(list(zip(roles.all, cases, strict=True)), "reading voxels"):
        if case.label is None:
            label_like += [path for image in case.images for path in _label_like(image, image.voxels())]
            continue
        label = case.label.voxels()
        counted = tally(label)
        if (around := prod(case.image.shape) - label.size) > 0:
            counted.whole[0] += around  # background around a cropped label
        for problem in whole_numbers(case.label.header.path, counted):
            raise UserError(problem.sentence)
        values.add(counted)
        if id(found) in chosen:
            samples.append(_sample(case, label, ignore_value, label_like))
        del label  # free the memory before the next file is read
    cut = [c.label.header.path for c in cases if c.label and cut_start(c.image, c.label.header) is not None]
    return Fingerprint(grids, values, _intensities(samples), len(samples), label_like, names_of_segments(headers), cut)


def _open(found: FoundCase) -> _Files:
    label = None if found.label is None else open_volume(found.label)
    return _Files([open_volume(path) for path in found.images], label)


def _grid_of(case: _Files) -> Grid:
    headers = [image.header for image in case.images]
    for problem in channels_on_one_grid(headers):
        raise UserError(problem.sentence)
    ras = headers[0].in_ras()
    return Grid(ras.shape, ras.spacing, sum(header.channels for header in headers), headers[0].time_axis)


def _check_channels(cases: Sequence[_Files], grids: Sequence[Grid]) -> None:
    for case, grid in zip(cases, grids, strict=True):
        if grid.channels != grids[0].channels:
            raise UserError(
                f"{case.image.path} has {grid.channels} channels, but {cases[0].image.path} has {grids[0].channels}: "
                "all cases must have the same number of channels; --exclude leaves files out."
            )


def _check_labels(cases: Sequence[_Files]) -> None:
    """Check that every label is on the grid of its image; the storage order of the axes may differ."""
    problems = [
        problem for case in cases if case.label is not None for problem in label_on_image(case.image, case.label.header)
    ]
    if problems:
        others = f" ({len(problems)} labels have this problem)" if problems[1:] else ""
        raise UserError(problems[0].sentence.rstrip(".") + others + ".")


def _label_like(image: Volume, voxels: np.ndarray) -> list[str]:
    return [image.header.path] if any(map(looks_like_label, voxels)) else []


def _sample(
    case: _Files, label: np.ndarray, ignore_value: int | None, label_like: list[str]
) -> list[tuple[float, np.ndarray]]:
    """Return the lowest value of the volume and a sample of the foreground values, for each channel.

    Args:
        case: files of the case; its images are read.
        label: `(1, X, Y, Z)`, in the storage order of the label file.
        ignore_value: label value that does not count as foreground.
        label_like: list to which images that look like labels are added.
    """
    assert case.label is not None
    on_image = on_image_grid(label[0], case.label.header, case.image)
    mask = _in_ras(case.image, on_image[None])[0].round()  # `tally` rounds label values in the same way
    mask = (mask != 0) if ignore_value is None else (mask != 0) & (mask != ignore_value)
    sampled = []
    for image in case.images:
        voxels = image.voxels()
        label_like += _label_like(image, voxels)
        sampled += [_of_channel(channel, mask) for channel in _in_ras(image.header, voxels)]
    return sampled


def _in_ras(header: VolumeHeader, voxels: np.ndarray) -> list[np.ndarray]:
    """Return the voxels `(X, Y, Z)` of each channel on RAS axes."""
    orientation = nibabel.io_orientation(header.affine)
    return [nibabel.apply_orientation(channel, orientation) for channel in voxels]


def _of_channel(channel: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the lowest value and evenly spaced values of the foreground (or of the volume, without foreground)."""
    inside = channel[mask] if mask.any() else channel.reshape(-1)
    sample = inside[:: max(1, len(inside) // VOXELS_PER_CASE)].astype(np.float32)
    return float(np.nanmin(channel)), sample[np.isfinite(sample)]


def _intensities(samples: Sequence[Sequence[tuple[float, np.ndarray]]]) -> list[Intensity]:
    result = []
    for channel in zip(*samples, strict=True):
        values = np.concatenate([sample for _, sample in channel])
        low, high = np.percentile(values, PERCENTILES) if len(values) else (0.0, 0.0)
        minimum = np.nanmedian(np.asarray([lowest for lowest, _ in channel]))
        result.append(Intensity(float(minimum), float(low), float(high)))
    return result


def evenly(items: Sequence, number: int) -> list:
    """Select at most `number` items, evenly spaced in the sequence."""
    if len(items) <= number:
        return list(items)
    return [items[i * len(items) // number] for i in range(number)]
