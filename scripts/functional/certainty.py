# SPDX-License-Identifier: Apache-2.0
"""How sure a prediction is of itself: voxel by voxel, and for a whole case."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the classes, in [0, 1]: 0 for a certain voxel, 1 where all classes are equally probable.

    Args:
        probabilities: `(K, ...)`, summing to 1 over K, K at least 2.

    Returns:
        `(...)`.
    """
    return torch.special.entr(probabilities).sum(dim=0).div(math.log(len(probabilities))).clamp(0.0, 1.0)


@dataclass
class ClassSums:
    """Sums over voxels, class by class, from which a case's confidence follows; a volume may come in parts.

    Attributes:
        predicted: voxels that have the class.
        agreeing: sum of the class's probability over those.
        expected: sum of the class's probability over all voxels.
    """

    num_classes: int
    predicted: torch.Tensor = field(init=False)
    agreeing: torch.Tensor = field(init=False)
    expected: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.predicted, self.agreeing, self.expected = torch.zeros(3, self.num_classes, dtype=torch.float64)

    def add(self, probabilities: torch.Tensor, classes: torch.Tensor) -> None:
        """Take a further part of the volume.

        Args:
            probabilities: `(K, ...)`.
            classes: `(...)`, int64, the class that each voxel is given.
        """
        flat = classes.reshape(-1).cpu()
        of_class = probabilities.gather(0, classes[None]).reshape(-1).double().cpu()
        self.predicted += torch.bincount(flat, minlength=self.num_classes)
        self.agreeing += torch.bincount(flat, weights=of_class, minlength=self.num_classes)
        self.expected += probabilities.flatten(1).sum(dim=1, dtype=torch.float64).cpu()

    def confidences(self) -> list[float]:
        """For each class the soft Dice of the prediction with its own probabilities, in [0, 1].

        `2 sum_{v of class c} p_c(v) / (number of voxels of c + sum_v p_c(v))`: the Dice that the prediction would have
        if the probabilities were right (soft Dice confidence, Borges et al. 2024). 0 for a class without a voxel.
        """
        total = self.predicted + self.expected
        return (2 * self.agreeing / total.clamp(min=torch.finfo(torch.float64).tiny)).tolist()

    def confidence(self) -> float:
        """Mean over the foreground classes that have a voxel, in [0, 1]; 0 if none has: nothing was found."""
        found = [
            value
            for value, voxels in zip(self.confidences()[1:], self.predicted[1:].tolist(), strict=True)
            if voxels > 0
        ]
        return sum(found) / len(found) if found else 0.0
