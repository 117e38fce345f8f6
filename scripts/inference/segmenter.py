# SPDX-License-Identifier: Apache-2.0
"""From an image's file to a class for each of its voxels, in bounded memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from scripts.errors import UserError
from scripts.images.find import ImageFiles
from scripts.images.read import VolumeHeader, read_header
from scripts.inference.streaming import BlockResampler, longest_axis, stitched_rows, with_block_spacing


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


@dataclass
class Segmentation:
    """What is known of an image, on the grid and in the axes `(X, Y, Z)` of its (first) file.

    Attributes:
        header: of that file.
        classes: class index of each voxel, uint8, or int16 for more than 256 classes.
        sums: from which the case's confidence follows.
        confidence: probability of the voxel's class, float32, if asked for.
        uncertainty: normalised entropy in [0, 1], float32, if asked for.
        probabilities: `(X, Y, Z, K)`, float32, if asked for; on disk, as long as this object lives.
    """

    header: VolumeHeader
    classes: np.ndarray
    sums: ClassSums
    confidence: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    probabilities: np.ndarray | None = None


class Segmenter:
    """Prepare, run the network window by window, and bring the result to the grid of the file.

    The same as MONAI's `SlidingWindowInferer`, softmax, `Invertd` and argmax one after the other, but no volume of all
    classes exists at any time: windows are stitched a row at a time, and each row goes to the file's grid at once.

    Args:
        preprocessing: `{"image": files}` to `{"image": MetaTensor (C, D, H, W)}`, as in training.
        inferer: its window, overlap and blending are used.
        predictor: windows to logits.
        in_channels: image channels.
        num_classes: K.
    """

    def __init__(
        self,
        preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        inferer: SlidingWindowInferer,
        predictor: Callable[[torch.Tensor], torch.Tensor],
        in_channels: int,
        num_classes: int,
    ) -> None:
        self.preprocessing = with_block_spacing(preprocessing)
        self.inferer, self.predictor = inferer, predictor
        self.in_channels, self.num_classes = in_channels, num_classes

    def __call__(
        self,
        image: ImageFiles,
        confidence: bool = False,
        uncertainty: bool = False,
        probabilities_in: str | Path | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: its file, or its files.
            confidence: whether that volume is wanted.
            uncertainty: likewise.
            probabilities_in: folder for a temporary file of all classes' probabilities; `None` for none.

        Raises:
            UserError: naming the file, if it cannot be read or has another number of channels.
        """
        header = self._header(image)
        result = self._empty(header, confidence, uncertainty, probabilities_in)
        for place, probabilities in self.probabilities(image, header):
            highest, classes = probabilities.max(dim=0)
            result.sums.add(probabilities, classes)
            result.classes[place] = classes.numpy()
            if result.confidence is not None:
                result.confidence[place] = highest.numpy()
            if result.uncertainty is not None:
                result.uncertainty[place] = normalised_entropy(probabilities).numpy()
            if result.probabilities is not None:
                result.probabilities[place] = probabilities.movedim(0, -1).numpy()
        return result

    def probabilities(
        self, image: ImageFiles, header: VolumeHeader
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Probabilities `(K, ...)` for one part of the file's grid after the other, with the part's place in it."""
        prepared = self.preprocessing({"image": image})["image"]
        if not bool(torch.isfinite(prepared).all()):
            raise UserError(f"{header.path} holds values that are no finite numbers: replace them or leave it out.")
        affine = prepared.affine.numpy() if isinstance(prepared, MetaTensor) else header.affine
        prepared = torch.as_tensor(prepared).as_subclass(torch.Tensor)
        shape = prepared.shape[1:]
        axis = longest_axis(shape, self.inferer.roi_size)
        to_file = BlockResampler(affine, shape, axis, header.affine, header.shape)
        for start, logits in stitched_rows(prepared, self.inferer, self.predictor, axis):
            yield from to_file.take(start, logits.softmax(dim=0))

    def _header(self, image: ImageFiles) -> VolumeHeader:
        headers = [read_header(file) for file in ([image] if isinstance(image, str) else image)]
        channels = sum(header.channels for header in headers)
        if channels != self.in_channels:
            raise UserError(
                f"{headers[0].path} has {channels} channel(s), but the network takes {self.in_channels}: give the "
                "channels that it was trained with, in that order."
            )
        return headers[0]

    def _empty(
        self, header: VolumeHeader, confidence: bool, uncertainty: bool, probabilities_in: str | Path | None
    ) -> Segmentation:
        probabilities = None
        if probabilities_in is not None:
            Path(probabilities_in).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=probabilities_in) as file:  # the map keeps the nameless file alive
                shape = (*header.shape, self.num_classes)
                probabilities = np.memmap(file, np.float32, "w+", shape=shape, order="F")
        return Segmentation(
            header,
            # in the order in which files are written
            np.zeros(header.shape, np.uint8 if self.num_classes <= 256 else np.int16, order="F"),
            ClassSums(self.num_classes),
            np.zeros(header.shape, np.float32, order="F") if confidence else None,
            np.zeros(header.shape, np.float32, order="F") if uncertainty else None,
            probabilities,
        )
