# SPDX-License-Identifier: Apache-2.0
"""The cases of an output folder, from evaluation or inference, and the volumes of their structures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from scripts.errors import UserError, first_line
from scripts.evaluation.report import MANIFEST
from scripts.evaluation.statistics import COLUMNS
from scripts.files import csv_rows
from scripts.images.header import ENDINGS, VolumeHeader, corner_distance
from scripts.images.read import open_volume, read_header, read_volume
from scripts.report.pictures import CaseVolumes

SAME_GRID_MM = 0.01


@dataclass
class ReportCase:
    """A case with its files.

    Attributes:
        name: name of the case, as in `metrics.csv`, `volumes.csv` and `failed.csv`.
        image: file of the image, if it is known.
        prediction: label volume of the prediction; if it is `None`, `load` returns background only.
        reference: label volume of the reference, if there is one.
        uncertainty: volume of the uncertainty, if there is one.
        values: label value of each structure in both label volumes, background not included.
        rows: rows of `metrics.csv`.
        problem: reason why there are no pictures; empty if there are some.
        predicted_dice: the predicted Dice, after inference.
        alarms: reasons not to trust the result, after inference.
    """

    name: str
    image: str | None = None
    prediction: Path | None = None
    reference: Path | None = None
    uncertainty: Path | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)
    problem: str = ""
    predicted_dice: float | None = None
    alarms: Sequence[str] = ()

    def load(self, with_image: bool = True) -> CaseVolumes:
        """Read the volumes and reorient them to RAS; the structures become classes 1, 2, ... in the order of `values`.

        Args:
            with_image: whether to read the image and the uncertainty too.

        Raises:
            UserError: if a file is missing or cannot be read; the message names it.
        """
        if self.prediction is not None:
            header, prediction = read_volume(self.prediction)
        elif self.image is not None:
            header = read_header(self.image)
            prediction = np.zeros((1, *header.shape), np.uint8)
        else:
            raise UserError(f"{self.name} has neither an image nor a prediction.")
        volumes: dict[str, np.ndarray] = {"prediction": self._classes(prediction[0])}
        if self.reference is not None:
            of_reference, reference = read_volume(self.reference)
            if not _same_grid(of_reference, header):
                raise UserError(f"{self.reference} is on another grid than {self.prediction}.")
            volumes["reference"] = self._classes(reference[0])
        if with_image and self.image is not None:
            volumes["image"] = _on_grid(self.image, header)
        if with_image and self.uncertainty is not None:
            volumes["uncertainty"] = _on_grid(str(self.uncertainty), header)
        orientation = nibabel.io_orientation(header.affine)
        turned = {kind: nibabel.apply_orientation(volume, orientation) for kind, volume in volumes.items()}
        return CaseVolumes(spacing=header.in_ras().spacing, **turned)

    def _classes(self, values: np.ndarray) -> np.ndarray:
        classes = np.zeros(values.shape, np.uint8 if len(self.values) < 256 else np.uint16)
        for index, value in enumerate(self.values.values(), start=1):
            classes[values == value] = index
        return classes


def find_cases(output_dir: Path) -> list[ReportCase]:
    """Find the cases of an output folder, in the order of its files; the list may be empty.

    Cases of an evaluation are in `metrics.csv`, with volumes in `predictions/`. Cases of inference have a label volume
    with a JSON file, or a row in `failed.csv`.

    Raises:
        UserError: if a file does not have the format that the bundle writes.
    """
    table, manifest = output_dir / "metrics.csv", output_dir / "predictions" / MANIFEST
    try:
        if not table.is_file():
            return list(_of_inference(output_dir))
        kept: dict[str, Any] = {"cases": [], "label_names": []}
        if manifest.is_file():
            kept = json.loads(manifest.read_text(encoding="utf-8"))
        return list(_of_evaluation(csv_rows(table), kept, manifest.parent))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{output_dir} cannot be read as the folder of an evaluation or an inference ({first_line(error)}): run "
            "`evaluate` again."
        ) from error


def find_candidates(output_dir: Path) -> list[tuple[dict[str, str], ReportCase]]:
    """Find unlabelled cases in the order in which to label them; empty if `prioritise_unlabelled` has not run.

    Returns:
        For each case its row of `prioritise_unlabelled.csv`, and its files: the image, and the label volume if
        `pseudo_label` has made one.

    Raises:
        UserError: if the table does not have the format that the bundle writes.
    """
    table, folder = output_dir / "prioritise_unlabelled.csv", output_dir / "pseudo_labels"
    if not table.is_file():
        return []
    found = []
    try:
        for row in csv_rows(table):
            sidecar, prediction = folder / f"{row['case']}.json", _volume(folder, row["case"])
            values: dict[str, int] = {}
            if prediction is not None and sidecar.is_file():
                values = _values(json.loads(sidecar.read_text(encoding="utf-8")))
            found.append((row, ReportCase(row["case"], row["image"], prediction if values else None, values=values)))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{table} cannot be read ({first_line(error)}): run `prioritise` again.") from error
    return found


def _values(sidecar: Mapping[str, Any]) -> dict[str, int]:
    """Return the label value of each structure, from the JSON file next to a label volume."""
    return {name: int(value) for value, name in list(sidecar["labels"].items())[1:]}


def _of_evaluation(rows: Iterable[dict[str, str]], kept: Mapping[str, Any], folder: Path) -> Iterable[ReportCase]:
    values = {name: index for index, name in enumerate(kept["label_names"]) if index > 0}
    files = {entry["case"]: entry for entry in kept["cases"]}
    by_case: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if missing := set(COLUMNS) - set(row):
            raise KeyError(f"metrics.csv has no column {min(missing)}")
        by_case.setdefault(row["case"], []).append(row)
    for name, own in by_case.items():
        entry = files.get(name)
        if entry is None:
            yield ReportCase(name, rows=own, problem="The evaluation kept no label volume of this case.")
        else:
            prediction, reference = folder / entry["prediction"], folder / entry["reference"]
            yield ReportCase(name, entry["image"], prediction, reference, values=values, rows=own)


def _of_inference(folder: Path) -> Iterable[ReportCase]:
    for sidecar in sorted(folder.glob("*_seg.json")):
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        name = sidecar.stem.removesuffix("_seg")
        values = _values(content)
        image = content["image"][0] if isinstance(content["image"], list) else content["image"]
        prediction, uncertainty = _volume(folder, f"{name}_seg"), _volume(folder, f"{name}_uncertainty")
        yield ReportCase(
            name,
            image,
            prediction,
            None,
            uncertainty,
            values,
            problem="" if prediction else "No volume.",
            predicted_dice=content.get("predicted_dice"),  # files of earlier versions do not have it
            alarms=content.get("alarms") or (),
        )
    if (folder / "failed.csv").is_file():
        for row in csv_rows(folder / "failed.csv"):
            yield ReportCase(row["case"], row["image"], problem=row["what"])


def _volume(folder: Path, name: str) -> Path | None:
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def _same_grid(one: VolumeHeader, other: VolumeHeader) -> bool:
    return one.shape == other.shape and corner_distance(one, other) <= SAME_GRID_MM


def _on_grid(path: str, grid: VolumeHeader) -> np.ndarray:
    """Interpolate the first channel of a volume linearly at the voxel centres of another grid."""
    volume = open_volume(path)
    voxels = volume.voxels()[0].astype(np.float32)
    if _same_grid(volume.header, grid):
        return voxels
    to_own = np.linalg.inv(volume.header.affine) @ grid.affine
    return ndimage.affine_transform(
        voxels, to_own, output_shape=grid.shape, order=1, mode="constant", cval=float(voxels.min())
    )


def structures_of(cases: Sequence[ReportCase]) -> list[str]:
    """Return the names of the structures of all cases, in the order of their label values."""
    names: dict[str, None] = {}
    for case in cases:
        names |= dict.fromkeys(row["class"] for row in case.rows) | dict.fromkeys(case.values)
    return list(names)


LARGE = 0.1
"""A component is large if it has at least this fraction of the voxels of the structure's largest component."""

MIN_AGREEMENT = 3
"""Minimum number of cases for limits of agreement."""


@dataclass(frozen=True)
class StructureMeasures:
    """Measurements of one structure in one case.

    Attributes:
        prediction_ml: volume in the prediction in ml.
        reference_ml: volume in the reference in ml; `None` without a reference.
        at_border: whether the prediction has voxels in the first or last slice along an axis, but the reference does
            not.
        large_components: number of large components of the prediction.
    """

    prediction_ml: float
    reference_ml: float | None
    at_border: bool
    large_components: int


def measure(volumes: CaseVolumes, structures: Sequence[str]) -> dict[str, StructureMeasures]:
    """Measure each structure of a case.

    Args:
        volumes: volumes of the case.
        structures: names of classes 1, 2, ...
    """
    millilitres = float(np.prod(volumes.spacing)) / 1000
    measured = {}
    for index, name in enumerate(structures, start=1):
        prediction = volumes.prediction == index
        reference = None if volumes.reference is None else volumes.reference == index
        measured[name] = StructureMeasures(
            int(prediction.sum()) * millilitres,
            None if reference is None else int(reference.sum()) * millilitres,
            _at_border(prediction) and not (reference is not None and _at_border(reference)),
            _large_components(prediction),
        )
    return measured


def _at_border(mask: np.ndarray) -> bool:
    # Skip axes with a single slice, where every voxel is at the border.
    axes = [axis for axis in range(3) if mask.shape[axis] > 1]
    return any(bool(np.take(mask, end, axis).any()) for axis in axes for end in (0, -1))


def _large_components(mask: np.ndarray) -> int:
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return 0
    parts, count = ndimage.label(mask[box[0]], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return int((sizes >= LARGE * sizes.max()).sum())


def agreement(
    measured: Mapping[str, Mapping[str, StructureMeasures]], structures: Sequence[str]
) -> list[dict[str, Any]]:
    """Compute the agreement of predicted and reference volumes (Bland and Altman, Lancet 1986) for each structure.

    A case counts if prediction or reference has the structure.

    Args:
        measured: measurements by case and structure.
        structures: names of the structures.

    Returns:
        For each structure with a reference in some case: `name`, `pairs` (prediction and reference of each case, ml),
        `num_cases`, `bias` (mean difference, prediction minus reference, ml) and `limits`: bias minus and plus 1.96
        standard deviations of the differences, `None` for fewer than `MIN_AGREEMENT` cases.
    """
    result = []
    for name in structures:
        of_cases = [each[name] for each in measured.values() if name in each]
        pairs = [(m.prediction_ml, m.reference_ml) for m in of_cases if m.reference_ml is not None]
        pairs = [pair for pair in pairs if any(pair)]
        if not pairs:
            continue
        difference = np.array([p - r for p, r in pairs])
        bias, limits = float(difference.mean()), None
        if len(pairs) >= MIN_AGREEMENT:
            spread = 1.96 * float(difference.std(ddof=1))
            limits = (bias - spread, bias + spread)
        result.append({"name": name, "pairs": pairs, "num_cases": len(pairs), "bias": bias, "limits": limits})
    return result
