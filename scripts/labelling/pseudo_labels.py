# SPDX-License-Identifier: Apache-2.0
"""Predict label volumes for unlabelled cases, and propose the slices whose correction is most useful."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.run import SegmentationWriter, each_case, report_failures
from scripts.inference.segmenter import Segmentation, Segmenter
from scripts.labelling.nnunet import check_nnunet_folder, write_nnunet_dataset

logger = logging.getLogger("pseudo_label")

SLICE_COLUMNS = ("case", "axis", "slice", "direction", "position_mm", "expected_error", "share", "label", "image")


def pseudo_label(
    cases: CaseLists,
    segmenter: Segmenter,
    writer: SegmentationWriter,
    corrected_labels: str | Path,
    layout: str = "files",
    dataset: DatasetSpec | None = None,
    slices: int | None = None,
) -> list[Path]:
    """Segment every unlabelled case and write `confidence.csv`, the least confident case first.

    If a label volume is moved to `corrected_labels`, its case counts as labelled in the next training run
    (`scripts.data.corrected_labels`), whether the volume was corrected or not.

    Args:
        cases: cases of the datalist.
        segmenter: segments a case.
        writer: writes the files of a case, with an empty postfix.
        corrected_labels: folder from which training reads corrected labels; it is named in the log.
        layout: `files`, or `nnunet` to turn the parent of the writer's folder into an nnU-Net dataset with all cases
            (`scripts/labelling/nnunet.py`).
        dataset: the dataset block; needed for `nnunet` and `slices`.
        slices: number of slices to keep in each case. The slices with the largest expected error are kept, and the
            dataset's `ignore_value` is written elsewhere (docs/sparse_annotation.md). `slices.csv` lists them for each
            case, largest error first. The segmenter must return `uncertainty`. `None` keeps whole volumes.

    Returns:
        The paths of the label volumes, if no case failed.

    Raises:
        UserError: if there is no unlabelled case, or the dataset has no `ignore_value` for `slices`; at the end, if a
            case failed.
    """
    if slices is not None:
        _check_slices(layout, writer.output_format, dataset)
    images = unlabelled_images(cases)
    if layout == "nnunet":
        check_nnunet_folder(Path(writer.output_dir).parent)
    written: list[Path] = []
    rows: list[tuple[object, ...]] = []
    of_structures = [f"confidence {name}" for name in list(writer.label_names)[1:]]
    columns = ("case", "confidence", *of_structures, "label", "image")

    of_slices: list[tuple[object, ...]] = []

    def one(image: ImageFiles, name: str) -> None:
        writer.check_case(image, name)
        result = segmenter(image)
        chosen = kept = None
        if slices is not None and dataset is not None and result.uncertainty is not None:
            chosen = choose_slices(result.uncertainty, result.affine, slices, dataset.spacing)
            kept, result.uncertainty = chosen.holds(result.classes.shape), None  # so that it is not written
        path = writer.write(result, name, kept, dataset.ignore_value if dataset is not None else None)
        written.append(path)
        if chosen is not None:
            of_slices.extend(slice_rows(name, chosen, result, path.name))
            write_text(Path(writer.output_dir) / "slices.csv", csv_text(SLICE_COLUMNS, of_slices))
        of_classes = [f"{value:.4f}" for value in result.sums.confidences()[1:]]
        rows.append((name, f"{result.sums.confidence():.4f}", *of_classes, path.name, first_file(image)))
        rows.sort(key=lambda row: (float(str(row[1])), row[0]))
        write_text(Path(writer.output_dir) / "confidence.csv", csv_text(columns, rows))

    failures = each_case(images, one, "pseudo_label")
    report_failures(failures, len(images), writer.output_dir)
    if layout == "nnunet" and dataset is not None:
        write_nnunet_dataset(cases, dataset, Path(writer.output_dir).parent)
        return written
    logger.info(
        f"{len(written)} label volumes written to {writer.output_dir}; confidence.csv lists the least confident first. "
        f"Correct a volume and move it to {corrected_labels}: training will then use it as a label."
    )
    return written


def slice_rows(name: str, chosen: ChosenSlices, result: Segmentation, label: str) -> Iterator[tuple[object, ...]]:
    """Yield a row of `SLICE_COLUMNS` for each slice, the largest expected error first.

    `slice` is the index along the file's `axis`, from 0. `direction` is the anatomical direction closest to that axis
    (R, A or S), and `position_mm` is the coordinate of the slice's centre in that direction.
    """
    direction = int(nibabel.io_orientation(result.affine)[chosen.axis, 0])
    middle = (np.array(result.classes.shape) - 1) / 2
    for error, index in sorted(zip(chosen.errors, chosen.indices, strict=True), reverse=True):
        middle[chosen.axis] = index
        position = float((result.affine @ [*middle, 1.0])[direction])
        share = error / chosen.total if chosen.total else 0.0
        place = (chosen.axis, index, "RAS"[direction], f"{position:.2f}")
        yield name, *place, f"{error:.1f}", f"{share:.4f}", label, first_file(result.image)


def _check_slices(layout: str, output_format: str, dataset: DatasetSpec | None) -> None:
    if dataset is None or dataset.ignore_value is None:
        raise UserError(
            "--slices needs an ignore_value for the voxels that stay unlabelled: add `ignore_value: 255`, or another "
            "number that no label has, to the dataset's YAML."
        )
    if layout == "nnunet" or output_format == "dicom_seg":
        raise UserError(
            "--slices writes labels for correction: leave out --layout nnunet and --output_format dicom_seg."
        )


def unlabelled_images(cases: CaseLists) -> list[tuple[ImageFiles, str]]:
    """Return image and name of every unlabelled case.

    Raises:
        UserError: if there is no unlabelled case.
    """
    if not cases.unlabelled:
        raise UserError("The datalist has no unlabelled cases: list them under `unlabeled`, or lower --labelled_cases.")
    return [(case["image"], case["case"]) for case in cases.unlabelled]


SAME_SPACING = 1.01
"""Voxel sizes whose ratio is smaller than this count as equal."""

TIE = 0.05
"""Distance in voxels to the midpoint between two voxels of the training grid within which rounding may skip a slice."""


@dataclass(frozen=True)
class ChosenSlices:
    """Slices of a volume.

    Attributes:
        axis: axis of the file, 0, 1 or 2, perpendicular to the slices.
        indices: indices of the slices, ascending, counted from 0.
        errors: expected error of each slice: the sum of the normalised entropies of its voxels.
        total: expected error of the whole volume.
    """

    axis: int
    indices: list[int]
    errors: list[float]
    total: float

    def holds(self, shape: Sequence[int]) -> np.ndarray:
        """Return a bool mask of the voxels in the slices; its size is 1 along the other axes, for broadcasting."""
        along = np.zeros(shape[self.axis], bool)
        along[self.indices] = True
        return along.reshape([-1 if axis == self.axis else 1 for axis in range(3)])


def slice_axis(affine: np.ndarray) -> int:
    """Return the axis with the largest voxel size, perpendicular to which people draw; the last one if equal.

    Args:
        affine: `(4, 4)`, voxel index to mm.

    Example:
        >>> slice_axis(np.diag([1.0, 3.0, 1.0, 1.0])), slice_axis(np.diag([2.0, 2.0, 1.0, 1.0])), slice_axis(np.eye(4))
        (1, 1, 2)
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.flatnonzero(spacing * SAME_SPACING >= spacing.max())[-1])


def usable_slices(affine: np.ndarray, axis: int, count: int, spacing: Sequence[float]) -> np.ndarray:
    """Return the indices of the slices that remain after nearest-neighbour resampling to the training grid.

    A coarser grid skips slices, and a label that is drawn on a skipped slice would be lost.

    Args:
        affine: affine of the file, `(4, 4)`, voxel index to mm.
        axis: axis of the file.
        count: number of slices along the axis.
        spacing: voxel size of the training grid in mm, along R, A and S.
    """
    body_axis, direction = nibabel.io_orientation(affine)[axis]
    step = spacing[int(body_axis)] / np.linalg.norm(affine[:3, axis])
    if step <= SAME_SPACING:
        return np.arange(count)
    places = np.arange(0, count - 0.5, step)  # the training grid begins at the first voxel in R, A and S
    places = places[np.abs(places % 1 - 0.5) > TIE]
    indices = np.unique(places.round().astype(int))
    return indices if direction > 0 else np.sort(count - 1 - indices)


def choose_slices(
    uncertainty: np.ndarray, affine: np.ndarray, number: int, spacing: Sequence[float] | None = None
) -> ChosenSlices:
    """Choose the slices with the largest expected error, with a minimum distance between them.

    Neighbouring slices look alike, so a slice is skipped if it is too close to a chosen one. The minimum distance is
    half the distance of evenly spaced slices in the part of the volume that holds 98 % of the expected error. If too
    few slices remain, it is halved.

    Args:
        uncertainty: normalised entropy of each voxel `(X, Y, Z)`, in [0, 1], on the grid of the file.
        affine: `(4, 4)`, voxel index to mm.
        number: number of slices.
        spacing: voxel size of the training grid in mm, along R, A and S; with `None` every slice may be chosen.

    Returns:
        At most `number` slices; fewer only if the volume has fewer.
    """
    axis = slice_axis(affine)
    profile = uncertainty.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
    count = len(profile)
    usable = np.arange(count) if spacing is None else usable_slices(affine, axis, count, spacing)
    cumulated = np.cumsum(profile) / max(float(profile.sum()), np.finfo(float).tiny)
    extent = int(np.searchsorted(cumulated, 0.99)) - int(np.searchsorted(cumulated, 0.01)) + 1
    order = usable[np.argsort(-profile[usable], kind="stable")]
    distance = -(-extent // (2 * number))
    while True:
        chosen: list[int] = []
        for index in order.tolist():
            if len(chosen) < number and all(abs(index - other) >= distance for other in chosen):
                chosen.append(index)
        if len(chosen) == min(number, len(usable)) or distance == 1:
            break
        distance //= 2
    chosen.sort()
    return ChosenSlices(axis, chosen, profile[chosen].tolist(), float(profile.sum()))
