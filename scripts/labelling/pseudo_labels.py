# SPDX-License-Identifier: Apache-2.0
"""Predict label volumes for unlabelled cases, to be corrected by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.outputs import SegmentationWriter
from scripts.inference.run import each_case, report_failures
from scripts.inference.segmenter import Segmentation, Segmenter
from scripts.labelling.nnunet import check_nnunet_folder, write_nnunet_dataset
from scripts.labelling.slices import ChosenSlices, choose_slices

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
        layout: `files`, or `nnunet` to make the folder above the writer's a dataset of nnU-Net, with all cases
            (`scripts/labelling/nnunet.py`).
        dataset: the dataset block; needed for `nnunet` and `slices`.
        slices: keep this many slices of each case, those with the largest expected error, and write the dataset's
            `ignore_value` elsewhere (docs/sparse_annotation.md). `slices.csv` lists them, those of a case with the
            largest error first. The segmenter must give `uncertainty`. `None`: whole volumes.

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
        result = segmenter(image)
        chosen = kept = None
        if slices is not None and dataset is not None and result.uncertainty is not None:
            chosen = choose_slices(result.uncertainty, result.affine, slices, dataset.spacing)
            kept, result.uncertainty = chosen.holds(result.classes.shape), None  # not to be written
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

    `slice` counts from 0 along `axis` of the file; `position_mm` is the coordinate of the slice's middle along R, A or
    S, the `direction` in which that axis mostly points.
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
    """Image and name of every unlabelled case.

    Raises:
        UserError: if there is no unlabelled case.
    """
    if not cases.unlabelled:
        raise UserError("The datalist has no unlabelled cases: list them under `unlabeled`, or lower --labelled_cases.")
    return [(case["image"], case["case"]) for case in cases.unlabelled]
