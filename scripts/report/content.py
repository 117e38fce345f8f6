# SPDX-License-Identifier: Apache-2.0
"""Collect the content of the report's template from the files of an output folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from scripts.crossval.estimate import RESULT
from scripts.errors import UserError
from scripts.evaluation.comparison import compare_dice, mean_per_case, read_dice
from scripts.evaluation.metrics import overlap_metrics
from scripts.report.advice import advice
from scripts.report.cases import ReportCase, StructureMeasures, agreement, find_candidates, measure, structures_of
from scripts.report.pictures import CaseVolumes, draw_case
from scripts.report.plots import agreement_plot, colour, dice_plot, difference_plot
from scripts.report.record import existing_json
from scripts.report.training import course_of, memory_of, training_facts

PICTURED, WORST = 60, 40
"""Maximum number of cases with pictures, and how many of them are the worst ones; the others are a sample."""

CANDIDATES, CANDIDATES_PICTURED = 30, 6
"""Maximum number of unlabelled cases in the list of cases to label next, and how many of them have pictures."""

CANDIDATE_BYTES = 250_000
PICTURE_BYTES = 10_000_000
"""Maximum size of all pictures together, so that the page stays below 15 MB."""

LABELS = {
    "dice": "Dice", "jaccard": "Jaccard", "hd95_voxel": "95HD (voxels)", "asd_voxel": "ASD (voxels)",
    "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)", "surface_dice": "Surface Dice",
}  # fmt: skip
SHOWN = ("dice", "hd95_mm", "asd_mm", "surface_dice")
"""Metrics that the page shows."""

STATUSES = {"found": "found", "missed": "missed", "false_positive": "false positive", "absent": "in neither"}

FACTS = {
    "dataset": "Dataset",
    "labelled_cases": "Labelled cases in training",
    "unlabelled_cases": "Unlabelled cases in training",
    "checkpoint": "Model",
    "images": "Images",
    "spacing_mm": "Voxels of the network (mm)",
}


def content_of(
    folder: Path, cases: Sequence[ReportCase], record: Mapping[str, Any], compare: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """Collect the content of the template.

    Args:
        folder: the output folder.
        cases: the cases of the folder.
        record: what `scripts.report.record.read_record` returns: `facts`, `command`, `config`, `versions`, `ended`,
            `training` (result of `compare_with_training`) and `run` (the record of the training).
        compare: folders of other evaluations of the same cases.

    Raises:
        UserError: if a file cannot be read, or if another evaluation has different classes or no case in common.
    """
    structures = structures_of(cases)
    numbers = {name: n for n, name in enumerate(structures, 1)}
    summary = existing_json(folder / "summary.json")
    order = worst_first(cases)
    pictured = set(choose_pictured(len(order)))
    measured: dict[str, dict[str, StructureMeasures]] = {}
    budget = PICTURE_BYTES // max(1, len(pictured))
    shown = [_case(case, rank, rank in pictured, budget, measured) for rank, case in enumerate(order)]
    volumes = agreement(measured, structures)
    has_metrics = any(case.rows for case in order)
    settings = (record.get("run") or {}).get("settings") or {}
    training = _training_folders(folder, record), settings.get("label_names") or ["background", *structures]
    return {
        "title": record["facts"].get("dataset") or settings.get("dataset_name") or folder.resolve().name,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "record": record,
        "run": _run_facts(record),
        "folds": list(_folds(record, settings)),
        "commands": list(filter(None, [(record.get("run") or {}).get("command"), record["command"]])),
        "summary": summary,
        "structures": [{"name": name, "number": n, "colour": colour(n - 1)} for name, n in numbers.items()],
        "numbers": numbers,
        "statuses": STATUSES,
        "metrics": [{"key": key, "label": LABELS[key], "digits": 2 if key.endswith("mm") else 3} for key in SHOWN],
        "dice_plot": _dice_plot(folder, summary),
        "predicted_dice": any(case.predicted_dice is not None for case in cases),
        "comparisons": [_comparison(folder, Path(other)) for other in compare],
        "crossval": _crossval(folder),
        "cases": shown,
        "rows": [row for rank, case in enumerate(order) for row in _rows(case, rank, measured.get(case.name, {}))],
        "has_metrics": has_metrics,
        "selection": _selection(len(order), len(pictured)),
        "has_reference": has_metrics,
        "course": course_of(*training),
        "memory": memory_of(*training),
        "volumes": volumes,
        "volumes_plot": agreement_plot(volumes, numbers) if volumes else "",
        "candidates": _candidates(folder),
        "advice": list(advice(summary, order, measured, record.get("training"))),
    }


def worst_first(cases: Sequence[ReportCase]) -> list[ReportCase]:
    """Sort cases by their mean Dice, lowest first; failed cases come first, and cases without metrics last."""
    dice: dict[str, dict[str, float]] = {}
    for case in cases:
        for row in case.rows:
            if row["dice"]:
                dice.setdefault(row["class"], {})[case.name] = float(row["dice"])
    means = mean_per_case(dice)
    failed = {case.name for case in cases if case.prediction is None and not case.rows}
    return sorted(cases, key=lambda case: -1.0 if case.name in failed else means.get(case.name, 2.0))


def choose_pictured(count: int) -> list[int]:
    """Choose the cases with pictures, as positions in the order of `worst_first`: the worst, and a sample of others.

    >>> choose_pictured(500)[38:43]
    [38, 39, 40, 64, 88]
    """
    if count <= PICTURED:
        return list(range(count))
    others = PICTURED - WORST
    spread = [WORST + round(k * (count - 1 - WORST) / (others - 1)) for k in range(others)]
    return [*range(WORST), *spread]


def _selection(count: int, pictured: int) -> str:
    if pictured == count:
        return ""
    return (
        f"Pictures of {pictured} of {count} cases, so that this file stays small: the {WORST} worst, and "
        f"{pictured - WORST} spread evenly from there to the best."
    )


def _case(
    case: ReportCase, rank: int, pictured: bool, bytes_left: int, measured: dict[str, dict[str, StructureMeasures]]
) -> dict[str, Any]:
    """Make the content for a case, and add its measurements to `measured`."""
    content: dict[str, Any] = {
        "name": case.name,
        "rank": rank,
        "rows": case.rows,
        "planes": [],
        "problem": case.problem,
        "pictured": pictured,
        "predicted_dice": case.predicted_dice,
        "alarms": case.alarms,
    }
    if case.problem:
        return content
    try:
        volumes = case.load(with_image=pictured)
        _check_dice(case, volumes)
        measured[case.name] = measure(volumes, list(case.values))
        if pictured:
            content["planes"] = [_with_words(plane) for plane in draw_case(volumes, bytes_left)]
    except UserError as error:  # for example a moved file: show the other cases
        content["problem"] = str(error)
    return content


def _check_dice(case: ReportCase, volumes: CaseVolumes) -> None:
    """Raise an error if pictures and numbers come from different evaluations that used the same folder."""
    for index, name in enumerate(case.values, start=1):
        row = next((row for row in case.rows if row["class"] == name and row["dice"]), None)
        if row is None or volumes.reference is None:
            continue
        dice, _ = overlap_metrics(volumes.prediction == index, volumes.reference == index)
        if not math.isclose(dice, float(row["dice"]), abs_tol=1e-6):
            raise UserError(
                f"{case.prediction} belongs to another evaluation than metrics.csv, which has a Dice of {row['dice']} "
                f"where its {name} has {dice:.4f}: run `evaluate` again."
            )


def _candidates(folder: Path) -> list[dict[str, Any]]:
    """Make the content for the unlabelled cases to label first."""
    shown = []
    for place, (row, case) in enumerate(find_candidates(folder)[:CANDIDATES]):
        pictured = place < CANDIDATES_PICTURED
        shown.append({**row, **_case(case, place, pictured, CANDIDATE_BYTES, {})})
    return shown


def _with_words(plane: dict[str, Any]) -> dict[str, Any]:
    """Add an alternative text for screen readers to a plane, and its slices in the form that the script reads."""
    start = plane["slices"][plane["start"]]
    # The picture of this slice is in the HTML already, and the script reads it from there.
    data = [{**each, "image": ""} if each is start else each for each in plane["slices"]]
    return {**plane, "data": data, "words": f"contours on slice {start['number']} of {plane['total']}"}


def _rows(case: ReportCase, rank: int, measured: Mapping[str, StructureMeasures]) -> list[dict[str, Any]]:
    """Make the rows of a case in the table: those of `metrics.csv`, or a row per structure, with the volumes."""
    rows: list[dict[str, Any]] = [dict(row) for row in case.rows]
    rows = rows or [{"case": case.name, "class": name, "status": ""} for name in measured]
    for row in rows:
        of_row = measured.get(row["class"])
        row |= {"rank": rank, "ml": of_row and of_row.prediction_ml, "reference_ml": of_row and of_row.reference_ml}
    return rows


def _dice_plot(folder: Path, summary: Mapping[str, Any] | None) -> str:
    if summary is None or not (folder / "metrics.csv").is_file():
        return ""
    intervals = {name: entry["dice_interval"] for name, entry in summary["per_class"].items()}
    return dice_plot(read_dice(folder), intervals)


def _comparison(folder: Path, other: Path) -> dict[str, Any]:
    a, b = read_dice(other), read_dice(folder)
    result = compare_dice(a, b)
    before, after = mean_per_case(a), mean_per_case(b)
    differences = {case: after[case] - before[case] for case in after if case in before}
    summary = existing_json(other / "summary.json") or {}
    return {
        "title": ", ".join(filter(None, [other.name, _in_words(summary.get("checkpoint") or "")])),
        "other": str(other),
        "result": result,
        "plot": difference_plot(differences, "difference of Dice"),
    }


def _crossval(folder: Path) -> list[dict[str, Any]]:
    """Collect the results of cross-validations below an output folder."""
    found = []
    for path in sorted(folder.glob(f"crossval/*/{RESULT}")):
        result = existing_json(path)
        assert result is not None
        try:
            control, method = result["control"], result["method"]
            plot = ""
            if method is not None:
                gains = {case: method[case] - control[case] for case in method if case in control}
                plot = difference_plot(gains, "gain of Dice")
            found.append({"dataset": path.parent.name, "sentences": result["sentences"], "plot": plot})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not the result of a cross-validation: run `crossval` again.") from error
    return found


def _run_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = record["facts"]
    shown = [(title, _in_words(facts[key])) for key, title in FACTS.items() if facts.get(key) is not None]
    shown += training_facts(record.get("run") or {})
    shown += [("Date", record["ended"])] if record.get("ended") else []
    shown += [("Versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items()))] if record["versions"] else []
    return shown


def _folds(record: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield titles and texts of the settings, which the page folds."""
    if settings:
        yield "Settings of the training", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120)
    if record["config"]:
        yield "Config of this run, after its files were joined", record["config"]


def _training_folders(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Return the folders that may hold TensorBoard's files of the training."""
    of_run = ((record.get("run") or {}).get("paths") or {}).get("output_dir")
    return [folder, *([Path(of_run)] if of_run and not of_run.startswith("$") else [])]


def _in_words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
