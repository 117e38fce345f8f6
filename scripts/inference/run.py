# SPDX-License-Identifier: Apache-2.0
"""Segment a list of images one after the other, and list the cases that failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.errors import UserError, first_line, root_user_error
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file, output_names
from scripts.inference.outputs import SegmentationWriter
from scripts.inference.segmenter import Segmentation, Segmenter
from scripts.progress import open_bar

logger = logging.getLogger("inference")

VOLUME_COLUMNS = ("case", "structure", "value", "voxels", "volume_ml", "predicted_dice", "alarms")
FAILURE_COLUMNS = ("case", "image", "what")


@dataclass(frozen=True)
class Failure:
    """A case without output, and the reason in one sentence."""

    case: str
    image: str
    what: str


def infer(images: Sequence[ImageFiles], segmenter: Segmenter, writer: SegmentationWriter) -> list[Path]:
    """Segment images and write label volumes, `volumes.csv`, and `failed.csv` if any failed.

    Args:
        images: as returned by `scripts.images.find.find_images`.
        segmenter: segments one image.
        writer: writes the files of one result.

    Returns:
        The paths of the label volumes.

    Raises:
        UserError: after the last case, naming the cases that failed.
    """
    written: list[Path] = []
    rows: list[tuple[object, ...]] = []
    alarmed: list[str] = []

    def one(image: ImageFiles, name: str) -> None:
        writer.check_image(image)
        result = segmenter(image)
        written.append(writer.write(result, name))
        rows.extend(volume_rows(name, result, writer))
        alarmed.extend([name] if result.alarms else [])
        write_text(Path(writer.output_dir) / "volumes.csv", csv_text(VOLUME_COLUMNS, rows))

    failures = each_case(list(zip(images, output_names([first_file(i) for i in images]), strict=True)), one)
    if alarmed:
        shown = ", ".join(alarmed[:10]) + (", ..." if len(alarmed) > 10 else "")
        logger.warning(
            f"{len(alarmed)} of {len(images)} cases are unlike those of training ({shown}): see volumes.csv."
        )
    report_failures(failures, len(images), writer.output_dir)
    logger.info(f"{len(written)} label volumes written to {writer.output_dir}.")
    return written


def each_case(
    cases: Sequence[tuple[ImageFiles, str]], work: Callable[[ImageFiles, str], None], title: str = "inference"
) -> list[Failure]:
    """Call `work` for each case, with a progress bar; an exception ends that case, and the next one follows.

    Args:
        cases: image and name of each case.
        work: called with image and name.
        title: title of the progress bar.

    Returns:
        The cases that failed.
    """
    failures = []
    with open_bar(cases, desc=title, unit="case") as bar:
        for image, name in bar:
            bar.set_postfix_str(name, refresh=True)
            try:
                work(image, name)
            except Exception as error:  # any exception: the other cases do not depend on this one
                mistake = root_user_error(error)
                what = str(mistake) if mistake else f"{type(error).__name__}: {first_line(error)}"
                failures.append(Failure(name, first_file(image), what))
                bar.write(f"{name} failed: {what}")
                logger.debug(f"{name} failed", exc_info=True)
    return failures


def report_failures(failures: Sequence[Failure], cases: int, output_dir: str | Path) -> None:
    """Write `failed.csv`; if no case failed, remove that of an earlier run.

    Raises:
        UserError: if any case failed.
    """
    path = Path(output_dir) / "failed.csv"
    if not failures:
        path.unlink(missing_ok=True)
        return
    write_text(path, csv_text(FAILURE_COLUMNS, [(each.case, each.image, each.what) for each in failures]))
    names = ", ".join(each.case for each in failures[:10]) + (", ..." if len(failures) > 10 else "")
    raise UserError(
        f"{len(failures)} of {cases} cases failed ({names}): {path} gives the reasons. The other cases are written."
    )


def volume_rows(name: str, result: Segmentation, writer: SegmentationWriter) -> Iterator[tuple[object, ...]]:
    """Yield a row of `VOLUME_COLUMNS` for each structure; the alarms are those of the case, separated by spaces."""
    millilitres = abs(np.linalg.det(result.affine[:3, :3])) / 1000
    voxels = np.bincount(result.classes.ravel(order="K"), minlength=len(writer.label_names))
    alarms = " ".join(result.alarms or ())
    named = zip(writer.label_names, writer.values, voxels.tolist(), result.predicted_dices(), strict=True)
    for structure, value, count, dice in list(named)[1:]:
        yield name, structure, value, count, f"{count * millilitres:.3f}", f"{dice:.4f}" if count else "", alarms
