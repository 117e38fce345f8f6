# SPDX-License-Identifier: Apache-2.0
"""Evaluate label volumes from any program, without a network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.data.checks.grid import cut_start, label_on_image, on_image_grid
from scripts.data.datalist import with_references
from scripts.data.labels import LabelValues, merged_values, to_classes, value_text
from scripts.data.spec import Case, DatasetSpec, images_of
from scripts.errors import UserError
from scripts.evaluation.report import case_names, format_summary, reported, write_report
from scripts.evaluation.statistics import case_rows
from scripts.images.components import classes_to_reduce, keep_largest
from scripts.images.find import image_files, output_names
from scripts.images.header import VolumeHeader, case_name
from scripts.images.read import exists, read_header, read_volume
from scripts.progress import progress_bar
from scripts.prototypes.voxels import NO_CLASS

logger = logging.getLogger("predictions")

POSTFIXES = ("", "_seg")
"""Suffixes that programs append to the name of a case: most append nothing; `predict` and others append `_seg`."""


def evaluate_predictions(
    cases: Sequence[Case],
    folder: str | Path | None,
    dataset: DatasetSpec,
    output_dir: str | Path,
    surface_tolerance_mm: float,
    prediction_values: LabelValues | None = None,
    largest_component: bool | str | Sequence[str] = False,
) -> dict[str, Any]:
    """Compare label volumes with the reference labels of cases, as `evaluating` does with predictions of a network.

    Args:
        cases: cases with labels.
        folder: folder with a label volume per case (see `find_predictions`), or with a subfolder per case that holds a
            mask per structure.
        dataset: declares the classes and their values in the references.
        output_dir: folder for `metrics.csv` and `summary.json`.
        surface_tolerance_mm: tolerance of surface Dice in mm.
        prediction_values: value of each class in the predictions; other values are background. With `None` the
            predictions must have the values of the references, and no others.
        largest_component: structures of which only the largest connected component is kept.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: for a case without a label or a prediction, a prediction on another grid than the reference, or a
            value that is not declared.
    """
    if folder is None:
        raise UserError("Give the folder of the label volumes with --predictions.")
    cases = with_references(list(cases), "test")
    found = find_predictions(cases, folder)
    reduced = classes_to_reduce(largest_component, dataset.label_names)
    names, members = reported(dict(enumerate(dataset.label_names)), dataset.regions)
    rows = []
    for case, files, name in zip(
        progress_bar(cases, "evaluating"), found, case_names([images_of(case)[0] for case in cases]), strict=True
    ):
        header, reference = _on_image(
            images_of(case)[0], *_classes(case["reference"], dataset.all_values, dataset.ignore_value, "correct it")
        )
        predicted = _prediction(files, header, dataset, prediction_values)
        keep_largest(predicted, reduced)
        ignored = reference == NO_CLASS
        predicted[ignored] = reference[ignored] = 0
        rows += case_rows(name, predicted, reference, header.spacing, names, surface_tolerance_mm, members)
    extra = {"surface_tolerance_mm": surface_tolerance_mm, "dataset": dataset.name, "predictions": str(folder)}
    summary = write_report(rows, names, output_dir, extra)
    logger.info("%s: %d cases\n%s", output_dir, len(cases), format_summary(summary))
    return summary


def find_predictions(cases: Sequence[Case], folder: str | Path) -> list[Path]:
    """Find the prediction of each case: a label volume, or a folder of masks (`structure.nii.gz`).

    A prediction has the name of the case, of the image (as in the output of `predict`), or of the label file, with or
    without `_seg`.

    Args:
        cases: cases from `with_references`.
        folder: folder of the predictions.

    Raises:
        UserError: if the folder does not exist, or if a case has no prediction or more than one.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder of the label volumes with --predictions.")
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    files, _ = image_files([entry for entry in entries if entry.is_file()])
    by_name: dict[str, list[Path]] = {}
    for entry in [*files, *(entry for entry in entries if entry.is_dir())]:
        by_name.setdefault(case_name(entry), []).append(entry)
    columns = [
        [case["case"] for case in cases],
        output_names([images_of(case)[0] for case in cases]),
        [case_name(case["reference"]) for case in cases],
    ]
    # A name that several cases share identifies none of them, for example segmentation.nii.gz in each case's folder.
    shared = {name for names in columns for name, count in Counter(names).items() if count > 1}
    found, missing = [], []
    for names in zip(*columns, strict=True):
        keys = {name + postfix for name in set(names) - shared for postfix in POSTFIXES}
        matching = [entry for key in sorted(keys) for entry in by_name.get(key, [])]
        if len(matching) > 1:
            raise UserError(f"{matching[0]} and {matching[1].name} are both predictions of {names[0]}: keep one.")
        found += matching
        missing += [] if matching else [names[0]]
    if missing:
        raise UserError(
            f"{root} has no prediction of {missing[0]} ({len(missing)} of {len(cases)} cases have none): name the "
            f"label volumes after the cases, as in {missing[0]}.nii.gz."
        )
    return found


def _classes(
    path: str | Path, values: Sequence[Sequence[int]], ignore_value: int | None, hint: str
) -> tuple[VolumeHeader, np.ndarray]:
    """Read header and class indices `(X, Y, Z)`, int16, of a label file; `hint` says how to fix undeclared values."""
    header, voxels = read_volume(path)
    if len(voxels) > 1:
        raise UserError(f"{path} has {len(voxels)} channels: save it as one channel with a value per class.")
    classes, undeclared = to_classes(torch.from_numpy(voxels[0].astype(np.float64, order="C")), values, ignore_value)
    if undeclared is not None:
        declared = sorted(value for each in values for value in each)
        raise UserError(f"{path} holds the label value {value_text(undeclared)}, which is none of {declared}: {hint}.")
    return header, classes.to(torch.int16).numpy()


def _on_image(image: str, header: VolumeHeader, reference: np.ndarray) -> tuple[VolumeHeader, np.ndarray]:
    """Put a reference that was cropped to its painted part on the grid of its image; return other references unchanged.

    Raises:
        UserError: for a cropped reference whose voxels do not coincide with voxels of its image.
    """
    grid = read_header(image) if exists(image) else header
    if cut_start(grid, header) is None:
        return header, reference
    for finding in label_on_image(grid, header):
        raise UserError(finding.sentence)
    return grid, on_image_grid(reference, header, grid)


def _prediction(
    path: Path, reference: VolumeHeader, dataset: DatasetSpec, prediction_values: LabelValues | None
) -> np.ndarray:
    """Read the class indices of a prediction on the grid of its reference."""
    if path.is_dir():
        predicted = np.zeros(reference.shape, np.int16)
        for index, name in enumerate(dataset.label_names[1:], start=1):
            files, _ = image_files(sorted(file for file in path.iterdir() if _is_mask_of(file, name)))
            if len(files) != 1:
                raise UserError(
                    f"{path} has {len(files)} masks of {name}: a folder of masks needs one file for each name in "
                    f"label_names, as in {name.replace(' ', '_')}.nii.gz."
                )
            header, voxels = read_volume(files[0])
            predicted[_on_grid(header, voxels[0], reference) > 0] = index
        return predicted
    if prediction_values is None:
        hint = "correct it, or give the value of each class in the predictions with --prediction_values"
        header, classes = _classes(path, dataset.all_values, None, hint)
        return _on_grid(header, classes, reference)
    header, voxels = read_volume(path)
    classes = np.zeros(voxels.shape[1:], np.int16)
    for index, values in enumerate(merged_values(dataset.num_classes, prediction_values)[1:], start=1):
        classes[np.isin(voxels[0].round(), values)] = index
    return _on_grid(header, classes, reference)


def _is_mask_of(file: Path, structure: str) -> bool:
    return case_name(file).lower().replace("_", " ") == structure.lower().replace("_", " ")


def _on_grid(header: VolumeHeader, voxels: np.ndarray, reference: VolumeHeader) -> np.ndarray:
    if label_on_image(reference, header):
        grids = [f"{each.size} voxels, affine {each.affine[:3].round(3).tolist()}" for each in (header, reference)]
        raise UserError(
            f"The prediction {header.path} ({grids[0]}) is not on the grid of the label file {reference.path} "
            f"({grids[1]}): resample it to the label file."
        )
    return np.ascontiguousarray(on_image_grid(voxels, header, reference))
