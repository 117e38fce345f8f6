# SPDX-License-Identifier: Apache-2.0
"""What a set of volumes is like: sizes, spacings, label values, intensities. One volume is in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel
import numpy as np

from scripts.data.checks.grid import channels_on_one_grid, label_on_image
from scripts.data.labels import MOST_VALUES, tally
from scripts.data.sizes import Progress
from scripts.errors import UserError
from scripts.images.read import read_header, read_voxels

VOXELS_A_CASE = 10_000  # foreground voxels that a case gives to the intensities, evenly over its foreground
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Grid:
    """A volume's grid with the axes in the order of RAS (the order that training brings them to).

    Attributes:
        shape: voxels.
        spacing: mm.
        channels: of the case, all its files together.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    channels: int


@dataclass
class LabelValues:
    """Values of label files.

    Attributes:
        cases: value to the number of label files that hold it.
        voxels: value to its voxels in all label files.
    """

    cases: Counter[int] = field(default_factory=Counter)
    voxels: Counter[int] = field(default_factory=Counter)

    def add(self, counts: dict[int, int]) -> None:
        """Take in one file's `count_values`."""
        self.cases.update(counts.keys())
        self.voxels.update(counts)


@dataclass(frozen=True)
class Intensity:
    """One channel's intensities in the sampled cases.

    Attributes:
        minimum: median over cases of the volume's lowest value.
        low: 0.5th percentile of foreground voxels, all cases together.
        high: 99.5th percentile.
    """

    minimum: float
    low: float
    high: float


def grid_of(images: Sequence[str]) -> Grid:
    """The grid of a case from its headers.

    Args:
        images: files of a case, one a channel, or one with several.

    Raises:
        UserError: for a file without usable voxel sizes, a single slice, or channels on different grids.
    """
    headers = [read_header(path) for path in images]
    for header in headers:
        if min(header.shape) < 2:
            raise UserError(f"{header.path} has {header.size} voxels: this bundle needs volumes, not single slices.")
    for mistake in channels_on_one_grid(headers):
        raise UserError(mistake.sentence)
    ras = headers[0].in_ras()
    return Grid(ras.shape, ras.spacing, sum(header.channels for header in headers))


def label_mistake(image: str, label: str) -> str | None:
    """Why a label file cannot lie on its image, from headers; `None` if it can, stored in whichever order."""
    findings = label_on_image(read_header(image), read_header(label))
    return findings[0].sentence if findings else None


def _read_in_ras(path: str) -> list[np.ndarray]:
    """Voxels `(X, Y, Z)` of each channel on axes to the right, to the front and to the head."""
    orientation = nibabel.io_orientation(read_header(path).affine)
    return [nibabel.apply_orientation(channel, orientation) for channel in read_voxels(path)]


def count_values(voxels: np.ndarray, name: str) -> dict[int, int]:
    """Voxels of each value in a label volume.

    Args:
        voxels: `(1, X, Y, Z)`, whole numbers of any type, or what `label_values.ROUNDING` makes one.
        name: of the file, for the message.

    Raises:
        UserError: for values that are no whole numbers, or more of them than classes can be.
    """
    values = tally(voxels)
    if values.other:
        raise UserError(f"The label {name} holds the value {next(iter(values.other))}: labels must be whole numbers.")
    if not values.complete:
        raise UserError(
            f"The label {name} holds more than {MOST_VALUES} values: it looks like an image; take it out of the labels "
            "or correct the file."
        )
    return dict(values.whole)


def measure_grids(cases: Sequence[Sequence[str]], progress: Progress) -> list[Grid]:
    """Grids of cases (lists of channel files).

    Raises:
        UserError: for an unreadable file, or cases that differ in their number of channels.
    """
    grids: list[Grid] = []
    for images in progress(cases, "reading headers"):
        grids.append(grid_of(images))
        if grids[-1].channels != grids[0].channels:
            raise UserError(
                f"{images[0]} has {grids[-1].channels} channels, but {cases[0][0]} has {grids[0].channels}: all cases "
                "need the same."
            )
    return grids


def measure_labels(pairs: Sequence[tuple[str, str]], progress: Progress) -> LabelValues:
    """Values of label files.

    Args:
        pairs: image and label of each case.
        progress: see `Progress`.

    Raises:
        UserError: for labels that cannot lie on their images, or hold what is no label.
    """
    mistakes = [mistake for pair in progress(pairs, "comparing grids") if (mistake := label_mistake(*pair))]
    if mistakes:
        raise UserError(mistakes[0][:-1] + (f" ({len(mistakes)} labels are like this)." if mistakes[1:] else "."))
    values = LabelValues()
    for _, label in progress(pairs, "counting labels"):
        values.add(count_values(read_voxels(label), label))
    return values


def measure_intensities(
    cases: Sequence[tuple[Sequence[str], str]], ignore_value: int | None, progress: Progress
) -> list[Intensity]:
    """Intensities under the labels, for each channel.

    Args:
        cases: channel files and label of each sampled case.
        ignore_value: label value that is no structure.
        progress: see `Progress`.
    """
    minima: list[list[float]] = []
    samples: list[list[np.ndarray]] = []
    for images, label in progress(cases, "sampling intensities"):
        mask = _read_in_ras(label)[0].round()  # of what `count_values` takes for whole numbers
        mask = (mask != 0) if ignore_value is None else (mask != 0) & (mask != ignore_value)
        measured = [_of_channel(channel, mask) for image in images for channel in _read_in_ras(image)]
        minima.append([lowest for lowest, _ in measured])
        samples.append([values for _, values in measured])
    pooled = [np.concatenate(channel) for channel in zip(*samples, strict=True)]
    lowest = np.nanmedian(np.asarray(minima), axis=0)
    result = []
    for minimum, values in zip(lowest, pooled, strict=True):
        low, high = np.percentile(values, PERCENTILES) if len(values) else (0.0, 0.0)
        result.append(Intensity(float(minimum), float(low), float(high)))
    return result


def _of_channel(channel: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Lowest value, and values evenly over the foreground; over the whole volume where there is no foreground."""
    inside = channel[mask] if mask.any() else channel.reshape(-1)
    sample = inside[:: max(1, len(inside) // VOXELS_A_CASE)].astype(np.float32)
    return float(np.nanmin(channel)), sample[np.isfinite(sample)]


def evenly(items: Sequence, number: int) -> list:
    """At most `number` items, evenly over the sequence."""
    if len(items) <= number:
        return list(items)
    return [items[i * len(items) // number] for i in range(number)]
