# SPDX-License-Identifier: Apache-2.0
"""Measurements of the training cases, with which inference recognises images that are unlike them.

A training case with its label and a new image with its prediction are measured in the same way, on the grid and with
the intensities that the network sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from torch.nn.functional import adaptive_avg_pool3d, normalize

from scripts.data.cache import prepared_item
from scripts.data.spec import DatasetSpec, images_of
from scripts.errors import UserError, first_line
from scripts.images.read import read_header
from scripts.prototypes.voxels import NO_CLASS

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SAMPLE = 2**18
"""Number of evenly spaced voxels from which the percentiles of an image are computed."""

SIDE = 8
"""Side in voxels of the small image that is used to compare orientations."""

FLIPS = [list(axes) for axes in chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3))]
MIN_IMAGES = 6
"""Orientations are compared if there were at least this many training images."""

MOST_CASES = 100
"""Maximum number of labelled and of unlabelled cases that are measured, evenly spaced in their list."""


class CaseMeasures:
    """Measurements of an image and of the structures in it; the class indices may be added in parts.

    Args:
        image: preprocessed image `(C, D, H, W)`, with axes towards R, A, S.
        file_spacing: voxel size in the file along R, A and S in mm.
        spacing: voxel size of `image` in mm.
        num_classes: K, background included.
    """

    def __init__(
        self, image: torch.Tensor, file_spacing: Sequence[float], spacing: Sequence[float], num_classes: int
    ) -> None:
        self.image = image.as_subclass(torch.Tensor)
        self.spacing_mm = [float(size) for size in file_spacing]
        self.size_mm = [side * float(size) for side, size in zip(image.shape[1:], spacing, strict=True)]
        self.voxel_ml = float(np.prod([float(size) for size in spacing])) / 1000
        flat = self.image.reshape(len(image), -1)
        sample = flat[:, :: max(1, flat.shape[1] // SAMPLE)].float().numpy()
        self.intensity = np.percentile(sample, PERCENTILES, axis=1).T.tolist()
        self.small = small_image(self.image)
        self.voxels = np.zeros(num_classes, np.int64)
        self.intensity_sums = np.zeros((len(image), num_classes))
        self.at_border = np.zeros(num_classes, bool)
        self.written_ml: np.ndarray | None = None

    def add(self, classes: torch.Tensor, axis: int = 0, start: int = 0) -> None:
        """Add a part of the volume, which begins at index `start` of `axis` and covers the other axes completely.

        Args:
            classes: class indices `(D, H, W)` of the part.
            axis: axis along which parts are adjacent.
            start: index along `axis` where the part begins.
        """
        part = self.image.narrow(axis + 1, start, classes.shape[axis])
        classes = classes.long()
        flat, number = classes.reshape(-1).cpu().numpy(), len(self.voxels)
        self.voxels += np.bincount(flat, minlength=number)
        for sums, channel in zip(self.intensity_sums, part, strict=True):
            sums += np.bincount(flat, weights=channel.reshape(-1).numpy(), minlength=number)
        stop, side = start + classes.shape[axis], self.image.shape[axis + 1]
        for other in range(3):
            for end, reached in ((0, start == 0), (-1, stop == side)):
                if other != axis or reached:
                    self.at_border[classes.select(other, end).unique().cpu().numpy()] = True

    def note_written(self, classes: np.ndarray, voxel_ml: float) -> None:
        """Measure volumes, and which structures reach the border, in the label volume that is written.

        That volume is on the file's grid, and components may have been removed from it.

        Args:
            classes: class indices `(X, Y, Z)`.
            voxel_ml: volume of a voxel in ml.
        """
        number = len(self.voxels)
        planes = (np.bincount(classes[..., k].ravel(order="K"), minlength=number) for k in range(classes.shape[2]))
        self.written_ml = voxel_ml * sum(planes, np.zeros(number))
        self.at_border = np.zeros(number, bool)
        for axis in range(3):
            for end in (0, -1):
                self.at_border[np.unique(classes.take(end, axis))] = True

    def structures(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return each structure's `volume_ml`, `intensity` (mean of each channel; `None` if absent) and `at_border`."""
        volumes = self.voxels * self.voxel_ml if self.written_ml is None else self.written_ml
        measured = zip(names, volumes, self.voxels, self.intensity_sums.T, self.at_border, strict=True)
        return {
            name: {
                "volume_ml": float(volume),
                "intensity": (sums / voxels).tolist() if voxels and volume else None,
                "at_border": bool(at_border),
            }
            for name, volume, voxels, sums, at_border in list(measured)[1:]
        }


def small_image(image: torch.Tensor) -> torch.Tensor:
    """Reduce an image `(C, D, H, W)` to `(8, 8, 8)` means over all channels, with mean 0 and length 1."""
    small = adaptive_avg_pool3d(image.float().mean(dim=0)[None], SIDE)[0].double()
    return normalize((small - small.mean()).reshape(1, -1))[0].reshape(small.shape)


def flip_gains(small: torch.Tensor, reference: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return by how much each flip of `FLIPS` raises the correlation of a small image with the reference."""
    plain = float((small * reference).sum())
    return {tuple(axes): float((small.flip(axes) * reference).sum()) - plain for axes in FLIPS}


class TrainingCases:
    """Ranges of the measurements over the training cases, computed when the first weights are saved.

    Voxel sizes, image sizes and intensities come from labelled and unlabelled images. Volumes and intensities of
    structures come from labels. Labels with ignored voxels are left out, because their volumes are incomplete.

    Args:
        labelled: cached dataset of the labelled cases.
        unlabelled: cached dataset of the unlabelled cases.
        dataset: the dataset block.
        crossval: `crossval.json` of an earlier cross-validation of this dataset, for the predicted Dice; it need not
            exist.

    Raises:
        UserError: if `crossval` cannot be read.
    """

    def __init__(
        self, labelled: Dataset, unlabelled: Dataset, dataset: DatasetSpec, crossval: str | Path | None = None
    ) -> None:
        self.labelled, self.unlabelled, self.dataset = labelled, unlabelled, dataset
        self.calibration = _calibration(crossval)

    @cached_property
    def content(self) -> dict[str, Any] | None:
        """Return the ranges as JSON, each `[lowest, highest]`; `None` if a dataset of the configuration has no cache.

        The keys are:

        - `images` and `labels`: how many were measured.
        - `spacing_mm` and `size_mm`, along R, A, S.
        - `intensity`, for each channel and percentile.
        - `structures`, by name: `volume_ml`, `intensity` of each channel, `at_border` (whether it reaches the border of
          the image in any label) and `always` (whether every label has the structure).
        - `small`: mean of the small images.
        - `flips`: those that lower the correlation with `small` in every training image.
        - `calibration`, from `crossval.json`.
        """
        if not all(isinstance(each, CacheDataset | PersistentDataset) for each in (self.labelled, self.unlabelled)):
            return None
        names = list(self.dataset.label_names)
        measured = list(self._measured())
        labels = [each.structures(names) for each, labelled in measured if labelled]
        images = [each for each, _ in measured]
        content = {
            "images": len(images),
            "labels": len(labels),
            "spacing_mm": _ranges([each.spacing_mm for each in images]),
            "size_mm": _ranges([each.size_mm for each in images]),
            "intensity": _ranges([each.intensity for each in images]),
            "structures": {name: _of_structure([each[name] for each in labels]) for name in names[1:] if labels},
            **_orientation([each.small for each in images]),
            "calibration": self.calibration,
        }
        return json.loads(json.dumps(_rounded(content)))

    def _measured(self) -> Iterator[tuple[CaseMeasures, bool]]:
        for dataset in (self.labelled, self.unlabelled):
            for index in range(0, len(dataset), max(1, -(-len(dataset) // MOST_CASES))):
                item = prepared_item(dataset, index)
                file = images_of(dataset.data[index])[0]
                image = torch.as_tensor(item["image"]).cpu()
                measures = CaseMeasures(
                    image, read_header(file).in_ras().spacing, self.dataset.spacing, self.dataset.num_classes
                )
                classes = torch.as_tensor(item["label"])[0].cpu() if "label" in item else None
                whole = classes is not None and not bool((classes == NO_CLASS).any())
                if classes is not None and whole:
                    measures.add(classes.as_subclass(torch.Tensor))
                yield measures, whole


def _ranges(values: Sequence[Any]) -> Any:
    """Return the minimum and the maximum of each number over lists of numbers with the same nesting."""
    array = np.array(values, dtype=float)
    return np.stack([array.min(axis=0), array.max(axis=0)], axis=-1).tolist()


def _of_structure(labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    present = [each for each in labels if each["intensity"] is not None]
    return {
        "volume_ml": _ranges([each["volume_ml"] for each in present]) if present else None,
        "intensity": _ranges([each["intensity"] for each in present]) if present else None,
        "at_border": any(each["at_border"] for each in present),
        "always": len(present) == len(labels),
    }


def _orientation(small: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the mean small image, and the flips that make every image less similar to the mean of the others."""
    if len(small) < MIN_IMAGES:
        return {"small": None, "flips": []}
    total = torch.stack(list(small)).sum(dim=0)
    gains = [flip_gains(each, normalize((total - each).reshape(1, -1))[0].reshape(each.shape)) for each in small]
    reliable = [axes for axes in FLIPS if max(gain[tuple(axes)] for gain in gains) < 0]
    return {"small": (total / total.norm()).flatten().tolist(), "flips": reliable}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _calibration(crossval: str | Path | None) -> dict[str, Any] | None:
    if crossval is None or not Path(crossval).is_file():
        return None
    try:
        return json.loads(Path(crossval).read_text(encoding="utf-8")).get("calibration")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{crossval} is not the result of a cross-validation ({first_line(error)}): run `crossval` again."
        ) from error
