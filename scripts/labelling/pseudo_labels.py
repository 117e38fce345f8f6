# SPDX-License-Identifier: Apache-2.0
"""Predict label volumes for unlabelled cases, to be corrected by hand."""

from __future__ import annotations

import logging
from pathlib import Path

from scripts.data.cases import CaseLists
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.outputs import SegmentationWriter
from scripts.inference.run import each_case, report_failures
from scripts.inference.segmenter import Segmenter
from scripts.labelling.nnunet import check_nnunet_folder, write_nnunet_dataset

logger = logging.getLogger("pseudo_label")


def pseudo_label(
    cases: CaseLists,
    segmenter: Segmenter,
    writer: SegmentationWriter,
    corrected_labels: str | Path,
    layout: str = "files",
    dataset: DatasetSpec | None = None,
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
        dataset: the dataset block; needed for `nnunet`.

    Returns:
        The paths of the label volumes, if no case failed.

    Raises:
        UserError: if there is no unlabelled case; at the end, if a case failed.
    """
    images = unlabelled_images(cases)
    if layout == "nnunet":
        check_nnunet_folder(Path(writer.output_dir).parent)
    written: list[Path] = []
    rows: list[tuple[object, ...]] = []
    of_structures = [f"confidence {name}" for name in list(writer.label_names)[1:]]
    columns = ("case", "confidence", *of_structures, "label", "image")

    def one(image: ImageFiles, name: str) -> None:
        result = segmenter(image)
        path = writer.write(result, name)
        written.append(path)
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


def unlabelled_images(cases: CaseLists) -> list[tuple[ImageFiles, str]]:
    """Image and name of every unlabelled case.

    Raises:
        UserError: if there is no unlabelled case.
    """
    if not cases.unlabelled:
        raise UserError("The datalist has no unlabelled cases: list them under `unlabeled`, or lower --labelled_cases.")
    return [(case["image"], case["case"]) for case in cases.unlabelled]
