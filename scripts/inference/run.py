# SPDX-License-Identifier: Apache-2.0
"""Segment a list of images, write the files of each case, and list the cases that failed."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from scripts.data.labels import LabelValues, declared_values
from scripts.data.naming import split_roles
from scripts.errors import UserError, first_line, root_user_error
from scripts.files import csv_text, file_digest, read_text, write_text
from scripts.images.dicom_seg import write_dicom_seg
from scripts.images.find import ImageFiles, find_images, first_file, grouped_channels, output_names
from scripts.images.header import NIFTI, SLICER, case_name, ending_of
from scripts.images.monai import label_dtype
from scripts.images.write import DICOM_SEG, output_ending, require_output_format, write_volume
from scripts.inference.segmenter import Segmentation, Segmenter
from scripts.progress import open_bar

logger = logging.getLogger("inference")

MAPS = ("_confidence", "_uncertainty", "_probabilities")
"""Ends of the names of the volumes that are written beside a label volume."""

IGNORED = "ignored"
"""Name of the ignored value, in label volumes of which only a part is to be corrected."""


@dataclass
class SegmentationWriter:
    """Write segmentations as files.

    Args:
        output_dir: folder for the files, created if needed.
        label_names: names of the classes, background first.
        label_values: value of each class in label volumes; `None` for 0, 1, 2, ... If a class has several values, the
            first is written.
        output_format: format of label volumes: `nifti`; `input` for the format of the image (DICOM becomes NIfTI);
            `seg_nrrd` for 3D Slicer's segmentations; `dicom_seg` for DICOM series.
        checkpoint: name of the model file, recorded in the JSON file of each label volume.
        postfix: appended to the case name to form the name of the label volume.

    Raises:
        UserError: if `label_values` does not fit `label_names`, the format is unknown, or the packages that it needs
            are not installed.
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
        require_output_format(self.output_format)
        named = zip(self.values, self.label_names, strict=True)
        self.names = {value: name for index, (value, name) in enumerate(named) if index > 0}

    def check_case(self, image: ImageFiles, name: str) -> None:
        """Check that the label volume of an image can be written, and that it replaces no one else's work.

        An existing label volume may be replaced only if `NAME_seg.json` has its digest: then it was written by this
        class and has not been changed since.

        Args:
            image: the image.
            name: name of the case.

        Raises:
            UserError: if the image has no label volume in `output_format`, or the existing one must be kept; names the
                file.
        """
        path = self._label_path(first_file(image), name)
        if path.exists() and file_digest(path) not in _written_digests(self._sidecar_path(name)):
            raise UserError(
                f"{path} is kept, because it was not written by this program or has been changed since: move it (a "
                "corrected label to corrected_labels), or give another folder with --output_dir (for pseudo-label: "
                "--pseudo_label_dir)."
            )

    def write(
        self, result: Segmentation, name: str, kept: np.ndarray | None = None, ignore_value: int | None = None
    ) -> Path:
        """Write the volumes of a result, the label volume last.

        The files are `NAME_confidence`, `NAME_uncertainty`, `NAME_probabilities.nii.gz` (one volume per class), and
        the label volume `NAME_seg` with its `NAME_seg.json`. Existing files are overwritten: see `check_case`.

        Args:
            result: result of a segmenter.
            name: name of the case.
            kept: bool mask, broadcast to the volume, of the voxels at which the segmentation is written; the others get
                `ignore_value`. `None` writes it everywhere.
            ignore_value: see `kept`.

        Returns:
            The path of the label volume.
        """
        image = first_file(result.image)
        path = self._label_path(image, name)
        ending = path.name.removeprefix(f"{name}{self.postfix}")
        if not (result.oriented or self.warned):
            self.warned = True
            logger.warning(
                f"{image} does not state the directions of its axes (NIfTI: sform or qform; NRRD: an "
                "anatomical space). L, P, S is assumed, so check that left and right are correct. This "
                "warning is not repeated for other images."
            )
        other_ending = {SLICER[0]: ".nrrd", DICOM_SEG: NIFTI[0]}.get(ending, ending)
        for kind, volume in (("confidence", result.confidence), ("uncertainty", result.uncertainty)):
            if volume is not None:
                write_volume(path.with_name(f"{name}_{kind}{other_ending}"), volume, result.affine, image)
        if result.probabilities is not None:
            path_of_all = path.with_name(f"{name}_probabilities.nii.gz")
            write_volume(path_of_all, result.probabilities, result.affine, image)
        sidecar = self._sidecar_path(name)
        # Earlier digests stay: a label volume in another format, or that of an earlier run if this one is interrupted.
        earlier = _written_digests(sidecar)

        def write_sidecar(label: Path) -> None:
            digests = list(dict.fromkeys([*earlier, file_digest(label)]))
            content = {**self._sidecar(result), "sha256": digests}
            write_text(sidecar, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

        values, names = self._file_values(result.classes), self.names
        if kept is not None and ignore_value is not None:
            wide = label_dtype([*self.values, ignore_value])
            values = np.where(kept, values, np.asarray(ignore_value, wide)).astype(wide, copy=False)
            names = {**names, ignore_value: IGNORED}  # 3D Slicer drops voxels without a segment
        if ending == DICOM_SEG:
            write_dicom_seg(path, result.classes, image, self.label_names, self.checkpoint, write_sidecar)
        else:
            write_volume(path, values, result.affine, image, names, write_sidecar)
        return path

    def _label_path(self, image: str, name: str) -> Path:
        return Path(self.output_dir) / f"{name}{self.postfix}{output_ending(image, self.output_format)}"

    def _sidecar_path(self, name: str) -> Path:
        return Path(self.output_dir) / f"{name}{self.postfix}.json"

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
            "predicted_dice": round(result.predicted_dice(), 4),
            "alarms": result.alarms,
        }


def _written_digests(sidecar: Path) -> list[str]:
    """Return the digests of all label volumes that were written with this JSON file; empty if another program's."""
    try:
        content = json.loads(read_text(sidecar))
    except (OSError, ValueError):
        return []
    digests = content.get("sha256") if isinstance(content, dict) else None
    return digests if isinstance(digests, list) else []


VOLUME_COLUMNS = ("case", "structure", "value", "voxels", "volume_ml", "predicted_dice", "alarms")
FAILURE_COLUMNS = ("case", "image", "what")


@dataclass(frozen=True)
class Failure:
    """A case without output, and the reason in one sentence."""

    case: str
    image: str
    what: str


def images_to_segment(
    path: str | Path | Sequence[ImageFiles], pattern: str = "*", in_channels: int = 1
) -> list[ImageFiles]:
    """Find images as `find_images` does; in a folder, skip files whose names mark them as labels or as `MAPS`.

    A folder may hold the labels of a training set next to its images, or the volumes of an earlier run in an
    `output_dir` inside the folder. They are segmented only if a pattern selects them, or if the folder holds nothing
    else.

    Args:
        path: see `find_images`.
        pattern: see `find_images`.
        in_channels: number of image channels; if there are several, `grouped_channels` groups the files of a folder.

    Raises:
        UserError: see `find_images`.
    """
    found = find_images(path, pattern)
    if not isinstance(path, str | Path) or not (root := Path(path).expanduser()).is_dir():
        return found
    files = [first_file(image) for image in found]
    if pattern == "*":
        files = _without_results(files, root)
    return grouped_channels(files) if in_channels > 1 else list[ImageFiles](files)


def _without_results(files: Sequence[str], root: Path) -> list[str]:
    file_of = {PurePath(os.path.relpath(file, root)).as_posix(): file for file in files}
    images, labels = split_roles(list(file_of))
    results = labels + [image for image in images if ending_of(image) and case_name(image).endswith(MAPS)]
    images = [image for image in images if image not in results]
    if not images or not results:
        return list(files)
    shown = ", ".join(results[:3]) + (", ..." if len(results) > 3 else "")
    logger.warning(
        f"{len(results)} of {len(files)} images below {root} are labels or maps of predictions by their names and are "
        f"left out ({shown}). --image_pattern selects images by name."
    )
    return [file_of[image] for image in images]


def infer(
    images: Sequence[ImageFiles],
    segmenter: Segmenter,
    writer: SegmentationWriter,
    begin: Callable[[], None] | None = None,
) -> list[Path]:
    """Segment images and write label volumes, `volumes.csv`, and `failed.csv` if any failed.

    Args:
        images: as returned by `images_to_segment`.
        segmenter: segments one image.
        writer: writes the files of one result.
        begin: called before the first case, to record the run.

    Returns:
        The paths of the label volumes.

    Raises:
        UserError: after the last case, if any case failed; the message names the failed cases.
    """
    if begin is not None:
        begin()
    written: list[Path] = []
    rows: list[tuple[object, ...]] = []
    alarmed: list[str] = []

    def one(image: ImageFiles, name: str) -> None:
        writer.check_case(image, name)
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
    """Call `work` for each case, with a progress bar; after an exception, continue with the next case.

    Args:
        cases: image and name of each case.
        work: function that is called with image and name.
        title: title of the progress bar.

    Returns:
        The cases that failed.
    """
    failures = []
    with open_bar(cases, desc=title, unit="case") as bar:
        for image, name in bar:
            bar.set_postfix_str(name, refresh=sys.stderr.isatty())  # in a log file each refresh is a line
            try:
                work(image, name)
            except Exception as error:  # any exception, because the other cases do not depend on this one
                mistake = root_user_error(error)
                what = str(mistake) if mistake else f"{type(error).__name__}: {first_line(error)}"
                failures.append(Failure(name, first_file(image), what))
                bar.write(f"{name} failed: {what}")
                logger.debug(f"{name} failed", exc_info=True)
    return failures


def report_failures(failures: Sequence[Failure], cases: int, output_dir: str | Path) -> None:
    """Write `failed.csv`; if no case failed, remove the file of an earlier run.

    Raises:
        UserError: if any case failed.
    """
    path = Path(output_dir) / "failed.csv"
    if not failures:
        path.unlink(missing_ok=True)
        return
    write_text(path, csv_text(FAILURE_COLUMNS, [(each.case, each.image, each.what) for each in failures]))
    names = ", ".join(each.case for each in failures[:10]) + (", ..." if len(failures) > 10 else "")
    rest = " The other cases are written." if len(failures) < cases else ""
    raise UserError(f"{len(failures)} of {cases} cases failed ({names}): {path} gives the reasons.{rest}")


def volume_rows(name: str, result: Segmentation, writer: SegmentationWriter) -> Iterator[tuple[object, ...]]:
    """Yield a row of `VOLUME_COLUMNS` for each structure; each row has all alarms of the case, separated by spaces."""
    millilitres = abs(np.linalg.det(result.affine[:3, :3])) / 1000
    voxels = np.bincount(result.classes.ravel(order="K"), minlength=len(writer.label_names))
    alarms = " ".join(result.alarms or ())
    named = zip(writer.label_names, writer.values, voxels.tolist(), result.predicted_dices(), strict=True)
    for structure, value, count, dice in list(named)[1:]:
        yield name, structure, value, count, f"{count * millilitres:.3f}", f"{dice:.4f}" if count else "", alarms
