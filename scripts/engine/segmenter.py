# SPDX-License-Identifier: Apache-2.0
"""From an image's file to a class for each of its voxels, with memory for a few copies of the image and no more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from scripts.data.block_resampling import BlockResampler
from scripts.data.block_spacing import with_block_spacing
from scripts.data.image_lists import ImageFiles
from scripts.data.volumes import VolumeHeader, read_header
from scripts.engine.row_stitching import longest_axis, stitched_rows
from scripts.errors import BundleError
from scripts.functional.certainty import ClassSums, normalised_entropy


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
            BundleError: naming the file, if it cannot be read or has another number of channels.
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
            raise BundleError(f"{header.path} holds values that are no finite numbers: replace them or leave it out.")
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
            raise BundleError(
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
