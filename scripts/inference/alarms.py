# SPDX-License-Identifier: Apache-2.0
"""Confidence of a segmentation, and warnings about images that lie outside the range of the training cases."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from scripts.data.training_cases import PERCENTILES, CaseMeasures, flip_gains
from scripts.data.weights import CASES
from scripts.evaluation.report import CONFIDENCE


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the classes, divided by log K: 0 for a certain voxel, 1 if all classes are equally probable.

    Args:
        probabilities: `(K, ...)`, summing to 1 over the K classes; K is at least 2.

    Returns:
        `(...)`, in [0, 1].
    """
    return torch.special.entr(probabilities).sum(dim=0).div(math.log(len(probabilities))).clamp(0.0, 1.0)


@dataclass
class ClassSums:
    """Sums over voxels for each class, from which the confidence of a case is computed; a volume may be added in parts.

    Attributes:
        predicted: `(K,)`, number of voxels assigned to the class.
        agreeing: `(K,)`, sum of the class's probability over these voxels.
        expected: `(K,)`, sum of the class's probability over all voxels.
    """

    num_classes: int
    predicted: torch.Tensor = field(init=False)
    agreeing: torch.Tensor = field(init=False)
    expected: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.predicted, self.agreeing, self.expected = torch.zeros(3, self.num_classes, dtype=torch.float64)

    def add(self, probabilities: torch.Tensor, classes: torch.Tensor) -> None:
        """Add a part of the volume.

        Args:
            probabilities: `(K, ...)`.
            classes: `(...)`, int64, the class assigned to each voxel.
        """
        flat = classes.reshape(-1).cpu()
        of_class = probabilities.gather(0, classes[None]).reshape(-1).double().cpu()
        self.predicted += torch.bincount(flat, minlength=self.num_classes)
        self.agreeing += torch.bincount(flat, weights=of_class, minlength=self.num_classes)
        self.expected += probabilities.flatten(1).sum(dim=1, dtype=torch.float64).cpu()

    def confidences(self) -> list[float]:
        """Soft Dice between the predicted labels and the predicted probabilities of each class, in [0, 1].

        `2 sum_{v of class c} p_c(v) / (number of voxels of c + sum_v p_c(v))` is the expected Dice if the probabilities
        are correct (soft Dice confidence, Borges et al. 2024). It is 0 for a class without voxels.
        """
        total = self.predicted + self.expected
        return (2 * self.agreeing / total.clamp(min=torch.finfo(torch.float64).tiny)).tolist()

    def confidence(self) -> float:
        """Mean over the foreground classes that have voxels, in [0, 1]; 0 if no structure was found."""
        found = [
            value
            for value, voxels in zip(self.confidences()[1:], self.predicted[1:].tolist(), strict=True)
            if voxels > 0
        ]
        return sum(found) / len(found) if found else 0.0


class AddConfidenced(MapTransform):
    """Add the confidence of each class to an item, from probabilities `(K, D, H, W)`; see `ClassSums`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with `confidence`, K numbers in [0, 1]."""
        result = dict(data)
        for key in self.key_iterator(result):
            probabilities = torch.as_tensor(result[key]).as_subclass(torch.Tensor)
            sums = ClassSums(len(probabilities))
            sums.add(probabilities, probabilities.argmax(dim=0))
            result[CONFIDENCE] = sums.confidences()
        return result


SPACING_FACTOR = 1.25
SIZE_FACTOR = 1.25
VOLUME_FACTOR = 1.5
"""A value is unusual if it is outside the training range by more than this factor."""

INTENSITY_MARGIN = 0.5
LEAST_MARGIN = 0.1
"""Intensities are unusual if they are outside the training range by more than this fraction of the range, and also by
more than this fraction of the difference between the 95th and the 5th percentile of a training image."""

DICE_MARGIN = 0.02
"""A predicted Dice is unusual if it is below the lowest predicted Dice of the held-out cases by more than this."""


class Alarms:
    """Compare images and their segmentations with the training cases.

    Args:
        training: content of `scripts.data.training_cases.TrainingCases`.
        label_names: names of the network's classes, background first.
    """

    def __init__(self, training: Mapping[str, Any], label_names: Sequence[str]) -> None:
        self.training, self.label_names = training, list(label_names)

    def measures(self, image: MetaTensor) -> CaseMeasures:
        """Measure a preprocessed image `(C, D, H, W)` with axes towards R, A, S; the caller then adds structures."""
        spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        affine = np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE], float)
        in_file = np.linalg.norm(affine[:3, :3], axis=0)
        order = nibabel.io_orientation(affine)[:, 0].astype(int)
        return CaseMeasures(image, in_file[np.argsort(order)].tolist(), spacing.tolist(), len(self.label_names))

    @property
    def dice_factor(self) -> float:
        """Ratio of Dice to confidence on the held-out cases of the cross-validation; 1 without cross-validation."""
        return 1.0 if self.training["calibration"] is None else self.training["calibration"]["factor"]

    def sentences(self, case: CaseMeasures, predicted_dice: float) -> list[str]:
        """Return the alarms of a case, each a sentence; an empty list if nothing is unusual.

        Args:
            case: measurements of the case, including the predicted structures.
            predicted_dice: predicted Dice of the case.
        """
        return [
            *self._of_axes("Voxel size", case.spacing_mm, self.training["spacing_mm"], SPACING_FACTOR),
            *self._of_axes("Size of the image", case.size_mm, self.training["size_mm"], SIZE_FACTOR),
            *self._of_intensity(case.intensity),
            *self._of_orientation(case.small),
            *self._of_structures(case.structures(self.label_names)),
            *self._of_dice(predicted_dice),
        ]

    def _of_axes(
        self, what: str, values: Sequence[float], ranges: Sequence[Sequence[float]], factor: float
    ) -> Iterator[str]:
        # Report only the axis that is farthest outside its range.
        excess = [max(low / value, value / high) for value, (low, high) in zip(values, ranges, strict=True)]
        axis = int(np.argmax(excess))
        if excess[axis] > factor:
            yield f"{what} along {'RAS'[axis]} {values[axis]:.3g} mm, trained on {_span(ranges[axis])} mm."

    def _of_intensity(self, percentiles: Sequence[Sequence[float]]) -> Iterator[str]:
        for channel, (values, ranges) in enumerate(zip(percentiles, self.training["intensity"], strict=True)):
            spread = self._spread(channel)
            excess = [_excess(value, each, spread) for value, each in zip(values, ranges, strict=True)]
            worst = int(np.argmax(excess))
            if excess[worst] > 0:
                of = "" if len(percentiles) == 1 else f" of channel {channel + 1}"
                yield (
                    f"Intensity{of} at percentile {PERCENTILES[worst]} {values[worst]:.2f} after normalisation, "
                    f"trained on {_span(ranges[worst])}."
                )

    def _spread(self, channel: int) -> float:
        """Difference between the 95th and the 5th percentile in training, each at the middle of its range."""
        ranges = self.training["intensity"][channel]
        return float(np.mean(ranges[PERCENTILES.index(95)]) - np.mean(ranges[PERCENTILES.index(5)]))

    def _of_orientation(self, small: torch.Tensor) -> Iterator[str]:
        if self.training["small"] is None:
            return
        gains = flip_gains(small, torch.tensor(self.training["small"], dtype=small.dtype).reshape(small.shape))
        reliable = {tuple(axes): gains[tuple(axes)] for axes in self.training["flips"]}
        axes = max(reliable, key=lambda axes: reliable[axes], default=())
        if axes and reliable[axes] > 0:
            along = " and ".join(f"{'RAS'[axis]}-{'LPI'[axis]}" for axis in axes)
            yield f"The image is more like those of training if it is mirrored along {along}: check its orientation."

    def _of_structures(self, structures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        for name, found in structures.items():
            trained = self.training["structures"].get(name)
            if trained is None or trained["volume_ml"] is None:
                continue
            if found["intensity"] is None:
                if trained["always"]:
                    yield f"No {name} was found, which every training label has."
                continue
            volume, (low, high) = found["volume_ml"], trained["volume_ml"]
            if not low / VOLUME_FACTOR <= volume <= high * VOLUME_FACTOR:
                yield f"Volume of {name} {volume:.3g} ml, trained on {_span((low, high))} ml."
            for channel, (value, each) in enumerate(zip(found["intensity"], trained["intensity"], strict=True)):
                if _excess(value, each, self._spread(channel)) > 0:
                    yield f"Mean intensity of {name} {value:.2f} after normalisation, trained on {_span(each)}."
            if found["at_border"] and not trained["at_border"]:
                yield f"The {name} reaches the border of the image, as in no training label."

    def _of_dice(self, dice: float) -> Iterator[str]:
        calibration = self.training["calibration"]
        if calibration is not None and dice < calibration["predicted"][0] - DICE_MARGIN:
            yield f"Predicted Dice {dice:.2f}, {_span(calibration['predicted'])} on held-out training cases."


def alarms_of(network: Any, label_names: Sequence[str]) -> Alarms | None:
    """Create the alarms of a loaded model whose file records its training cases; for an ensemble, of its first file.

    Args:
        network: the result of `scripts.inference.models.load_model`, or a `MirroredNetwork` of it.
        label_names: names of the classes, background first.

    Returns:
        The alarms; `None` for a model without the record, such as older weights and formats other than `.pt`.
    """
    training = getattr(network, "records", {}).get(CASES)
    return None if training is None else Alarms(training, label_names)


def _excess(value: float, span: Sequence[float], spread: float) -> float:
    """Return how far a value is outside a range with its margin, in units of `spread`; 0 or less inside."""
    low, high = span
    margin = max(INTENSITY_MARGIN * (high - low), LEAST_MARGIN * spread)
    return (max(low - value, value - high) - margin) / max(spread, 1e-6)


def _span(span: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in span)
    return low if low == high else f"{low} to {high}"
