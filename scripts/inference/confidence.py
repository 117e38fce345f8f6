# SPDX-License-Identifier: Apache-2.0
"""How certain a segmentation is: per voxel, per structure and per case."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.transforms import MapTransform

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
    """Sums over voxels for each class, from which the confidence of a case is computed; a volume may come in parts.

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
        """Soft Dice of the prediction and its own probabilities for each class, in [0, 1].

        `2 sum_{v of class c} p_c(v) / (number of voxels of c + sum_v p_c(v))`: the expected Dice if the probabilities
        are right (soft Dice confidence, Borges et al. 2024). A class without voxels has 0.
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
