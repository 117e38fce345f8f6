# SPDX-License-Identifier: Apache-2.0
"""What is written for a segmented case: the label volume with its names, and volumes of how sure it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import FolderLayoutBase

from scripts.data.labels import declared_values
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.components import keep_largest
from scripts.images.find import ImageFiles, first_file, output_names
from scripts.images.header import case_name
from scripts.images.monai import label_dtype
from scripts.images.write import output_ending, write_volume
from scripts.inference.segmenter import Segmentation, Segmenter


@dataclass
class CaseOutputs:
    """Segment a case and write its files.

    Switches may be the texts `true` and `false` too, as they are on MONAI's command line.

    Args:
        output_dir: where they go; it is made.
        label_names: of the classes, background first.
        label_values: written for each class; `None` for 0, 1, 2, ...
        output_format: `nifti`, or `input` for the image's own format (DICOM becomes NIfTI).
        largest_component: `True` to keep the largest connected part of each structure, or names of structures.
        save_probabilities: whether `NAME_probabilities.nii.gz` is written, `(X, Y, Z, K)`.
        save_confidence: whether `NAME_confidence` is written, the probability of each voxel's class.
        save_uncertainty: whether `NAME_uncertainty` is written, normalised entropy.
        checkpoint: named in the sidecar.

    Raises:
        UserError: for values that do not fit the names, a name that is no structure's, or an unknown format.
    """

    output_dir: str | Path
    label_names: Sequence[str]
    label_values: Sequence[int] | None = None
    output_format: str = "nifti"
    largest_component: bool | Sequence[str] = False
    save_probabilities: bool = False
    save_confidence: bool = False
    save_uncertainty: bool = False
    checkpoint: str = ""
    postfix: str = "_seg"

    def __post_init__(self) -> None:
        for switch in ("largest_component", "save_probabilities", "save_confidence", "save_uncertainty"):
            value = getattr(self, switch)
            setattr(self, switch, value == "true" if value in ("true", "false") else value)
        self.values = declared_values(len(self.label_names), self.label_values)
        output_ending("", self.output_format)
        self.reduced = self._reduced()

    def write(self, segmenter: Segmenter, image: ImageFiles, name: str) -> tuple[Segmentation, Path]:
        """Segment an image and write its files, the label volume last.

        Args:
            segmenter: what segments.
            image: its file or files.
            name: what the files are called after.

        Returns:
            The segmentation as written, and the label volume's file.
        """
        result = segmenter(
            image, self.save_confidence, self.save_uncertainty, self.output_dir if self.save_probabilities else None
        )
        keep_largest(result.classes, self.reduced)
        ending = output_ending(first_file(image), self.output_format)
        path = Path(self.output_dir) / f"{name}{self.postfix}{ending}"
        affine = result.header.affine
        for kind, volume in (("confidence", result.confidence), ("uncertainty", result.uncertainty)):
            if volume is not None:
                write_volume(path.with_name(f"{name}_{kind}{ending}"), volume, affine)
        if result.probabilities is not None:
            write_volume(path.with_name(f"{name}_probabilities.nii.gz"), result.probabilities, affine)
        write_text(sidecar_of(path), json.dumps(self._sidecar(image, result), ensure_ascii=False, indent=1) + "\n")
        write_volume(path, self._file_values(result.classes), affine)
        return result, path

    def _file_values(self, classes: np.ndarray) -> np.ndarray:
        values = np.asarray(self.values, label_dtype(self.values))
        if self.values == list(range(len(self.values))) and classes.dtype == values.dtype:
            return classes
        return values[classes]

    def _sidecar(self, image: ImageFiles, result: Segmentation) -> dict[str, Any]:
        return {
            "image": image,
            "checkpoint": self.checkpoint,
            "labels": {str(value): name for value, name in zip(self.values, self.label_names, strict=True)},
            "confidence": round(result.sums.confidence(), 6),
        }

    def _reduced(self) -> list[int]:
        """Classes of which the largest part is kept."""
        structures = list(self.label_names)[1:]
        if isinstance(self.largest_component, bool):
            return list(range(1, len(structures) + 1)) if self.largest_component else []
        names = [self.largest_component] if isinstance(self.largest_component, str) else list(self.largest_component)
        unknown = [name for name in names if name not in structures]
        if unknown:
            raise UserError(
                f"largest_component names {unknown[0]!r}, which is no structure: take of {', '.join(structures)}, or "
                "true for all."
            )
        return sorted({structures.index(name) + 1 for name in names})


def sidecar_of(path: str | Path) -> Path:
    """The JSON file beside a label volume: `a_seg.nii.gz` to `a_seg.json`."""
    path = Path(path)
    return path.with_name(f"{case_name(path)}.json")


class OutputNames(FolderLayoutBase):
    """For MONAI's `SaveImaged(folder_layout=...)`: where the output for each of `images` goes.

    Args:
        images: of `find_images`; one of several files is known by its first. Or what returns them when the first output
            is named: a reader of bundles that builds the transforms and drops those that save has no folder of images.
        output_dir: made when the first output is written.
        postfix: behind the name.
        extension: of the written file.
    """

    def __init__(
        self,
        images: Sequence[ImageFiles] | Callable[[], Sequence[ImageFiles]],
        output_dir: str | Path,
        postfix: str = "_seg",
        extension: str = ".nii.gz",
    ) -> None:
        self.images, self.output_dir = images, Path(output_dir)
        self.ending = postfix + extension

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The output's path for each input."""
        images = self.images() if callable(self.images) else self.images
        files = [first_file(image) for image in images]
        names = zip(files, output_names(files), strict=True)
        return {file: self.output_dir / f"{name}{self.ending}" for file, name in names}

    def filename(self, subject: str, idx: int | None = None) -> str:
        """Path of the output.

        Args:
            subject: the input's path, `filename_or_obj` of its meta data.
            idx: number of a patch, which whole volumes do not have.

        Raises:
            KeyError: for a path that is not among `images`.
        """
        path = self.paths[subject]
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)
