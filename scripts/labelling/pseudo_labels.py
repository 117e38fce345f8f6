# SPDX-License-Identifier: Apache-2.0
"""What `run pseudo_label` does: label volumes of unlabelled cases, for a person to correct."""

from __future__ import annotations

import logging
from pathlib import Path

from scripts.data.cases import CaseLists
from scripts.data.corrected_labels import names_of
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.outputs import SegmentationWriter
from scripts.inference.run import each_case, report_failures
from scripts.inference.segmenter import Segmenter

logger = logging.getLogger("pseudo_label")


def pseudo_label(
    cases: CaseLists, segmenter: Segmenter, writer: SegmentationWriter, corrected_labels: str | Path
) -> list[Path]:
    """Segment every unlabelled case and write `confidence.csv`, the least sure case first.

    A file of its output folder that is moved into `corrected_labels`, corrected or not, makes its case a labelled one
    of the next training run (`scripts.data.corrected_labels`).

    Args:
        cases: of the datalist.
        segmenter: what segments a case.
        writer: writes its files, with an empty postfix.
        corrected_labels: folder that training looks into, told to the annotator.

    Returns:
        The label volumes' files, if no case failed.

    Raises:
        UserError: for no unlabelled case; at the end, naming the cases that failed.
    """
    require_unlabelled(cases)
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

    names = names_of(cases, cases.unlabelled)
    failures = each_case(
        [(case["image"], name) for case, name in zip(cases.unlabelled, names, strict=True)], one, "pseudo_label"
    )
    report_failures(failures, len(names), writer.output_dir)
    logger.info(
        f"{len(written)} label volumes in {writer.output_dir}, the least sure first in confidence.csv: correct one, "
        f"move it to {corrected_labels}, and it trains as a labelled case."
    )
    return written


def require_unlabelled(cases: CaseLists) -> None:
    """Stop if there is nothing to do.

    Raises:
        UserError: for lists without an unlabelled case.
    """
    if not cases.unlabelled:
        raise UserError("The datalist has no unlabelled case: list some in `unlabeled`, or lower --labelled_cases.")
