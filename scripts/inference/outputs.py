# SPDX-License-Identifier: Apache-2.0
"""Write the files of a segmented case: label volume, names of its labels, confidence and uncertainty."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.labels import LabelValues, declared_values
from scripts.files import write_text
from scripts.images.find import first_file
from scripts.images.header import case_name
from scripts.images.monai import label_dtype
from scripts.images.write import output_ending, write_volume
from scripts.inference.segmenter import Segmentation

logger = logging.getLogger("inference")


@dataclass
class SegmentationWriter:
    """Write segmentations as files.

    Args:
        output_dir: folder for the files, created if needed.
        label_names: names of the classes, background first.
        label_values: value of each class in label volumes; `None` for 0, 1, 2, ...; of a class with several values
            the first is written.
        output_format: `nifti`, or `input` for the format of the image (DICOM becomes NIfTI).
        checkpoint: name of the model file, recorded in the JSON file of each label volume.
        postfix: appended to the case name to form the name of the label volume.

    Raises:
        UserError: if `label_values` does not fit `label_names`, or the format is unknown.
    """

    output_dir: str | Path
    label_names: Sequence[str]
    label_values: LabelValues | None = None
    output_format: str = "nifti"
    checkpoint: str = ""
    postfix: str = "_seg"

    def __post_init__(self) -> None:
        self.values = declared_values(len(self.label_names), self.label_values)
        self.warned = False
        output_ending("", self.output_format)

    def write(self, result: Segmentation, name: str) -> Path:
        """Write the volumes of a result, the label volume last.

        The files are `NAME_confidence`, `NAME_uncertainty`, `NAME_probabilities.nii.gz` (one volume per class), and
        the label volume `NAME_seg` with its `NAME_seg.json`.

        Args:
            result: result of a segmenter.
            name: name of the case.

        Returns:
            The path of the label volume.
        """
        image = first_file(result.image)
        ending = output_ending(image, self.output_format)
        if not (result.oriented or self.warned):
            self.warned = True
            logger.warning(
                f"{image} does not state the directions of its axes (NIfTI: sform or qform). L, P, S is assumed, so "
                "check that left and right are correct. Further images of this kind are not mentioned."
            )
        path = Path(self.output_dir) / f"{name}{self.postfix}{ending}"
        for kind, volume in (("confidence", result.confidence), ("uncertainty", result.uncertainty)):
            if volume is not None:
                write_volume(path.with_name(f"{name}_{kind}{ending}"), volume, result.affine, image)
        if result.probabilities is not None:
            path_of_all = path.with_name(f"{name}_probabilities.nii.gz")
            write_volume(path_of_all, result.probabilities, result.affine, image)
        write_text(sidecar_of(path), json.dumps(self._sidecar(result), ensure_ascii=False, indent=1) + "\n")
        write_volume(path, self._file_values(result.classes), result.affine, image)
        return path

    def _file_values(self, classes: np.ndarray) -> np.ndarray:
        values = np.asarray(self.values, label_dtype(self.values))
        if self.values == list(range(len(self.values))) and classes.dtype == values.dtype:
            return classes
        return values[classes]

    def _sidecar(self, result: Segmentation) -> dict[str, Any]:
        return {
            "image": result.image,
            "checkpoint": self.checkpoint,
            "labels": {str(value): name for value, name in zip(self.values, self.label_names, strict=True)},
            "confidence": round(result.sums.confidence(), 6),
        }


def sidecar_of(path: str | Path) -> Path:
    """The path of the JSON file next to a label volume: `a_seg.json` for `a_seg.nii.gz`."""
    path = Path(path)
    return path.with_name(f"{case_name(path)}.json")
