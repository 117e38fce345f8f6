# SPDX-License-Identifier: Apache-2.0
"""The report of a run as one self-contained HTML file."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from scripts.cli.overrides import check_overrides, is_command_line
from scripts.cli.runs import shell_line
from scripts.errors import UserError, first_line
from scripts.evaluation.comparison import mean_per_case, read_dice
from scripts.files import write_text
from scripts.report.cases import ReportCase, find_cases, structures_of
from scripts.report.pictures import draw_case
from scripts.report.plots import colour, dice_plot

logger = logging.getLogger("report")

FOLDER, PAGE, RECORD = "report", "index.html", "evaluation.json"

PICTURED, WORST = 60, 40
"""Largest number of cases with pictures, and how many of them are the worst ones; the others are a sample."""

PICTURE_BYTES = 10_500_000
"""Size of all pictures together: the page stays below 15 MB."""

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")

LABELS = {
    "dice": "Dice", "jaccard": "Jaccard", "hd95_voxel": "95HD (voxels)", "asd_voxel": "ASD (voxels)",
    "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)", "surface_dice": "Surface Dice",
}  # fmt: skip
SHOWN = ("dice", "hd95_mm", "asd_mm", "surface_dice")
"""Metrics of the page."""

STATUSES = {"found": "found", "missed": "missed", "false_positive": "invented", "absent": "in neither"}
DASH = "\N{EN DASH}"


def write_report(
    output_dir: str | Path, facts: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None
) -> Path:
    """Write `report/index.html` into an output folder, from the files of its evaluation or inference.

    Args:
        output_dir: the folder. It is the only source, so that the page can be made again at any time.
        facts: what the page says about the run that has just ended; kept for later calls without it.
        argv: the command line of that run; `None` takes that of this process.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder holds neither an evaluation nor an inference, or the page cannot be written.
    """
    begun, folder = time.perf_counter(), Path(output_dir)
    cases = find_cases(folder)
    if not cases:
        raise UserError(
            f"{folder} holds no metrics.csv and no label volumes: give the output_dir of `evaluate` or `predict`."
        )
    if facts is not None:
        _keep_record(folder, facts, sys.argv if argv is None else argv)
    path = folder / FOLDER / PAGE
    write_text(path, render(content_of(folder, cases)))
    logger.info(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - begun:.0f} s.")
    return path


def render(content: Mapping[str, Any]) -> str:
    """The page as HTML. Jinja2 escapes every name and number in it."""
    import jinja2  # here: only this command needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html").render(content)


def number(value: float | str | None, digits: int = 3) -> str:
    """A number for the page; a dash for `None`, NaN and an empty cell."""
    if value in (None, "") or math.isnan(float(value or 0)):
        return DASH
    return f"{float(value or 0):.{digits}f}"


def content_of(folder: Path, cases: Sequence[ReportCase]) -> dict[str, Any]:
    """Everything that the template shows.

    Args:
        folder: the output folder.
        cases: its cases.
    """
    structures = structures_of(cases)
    summary = _read_json(folder / "summary.json")
    order = worst_first(cases)
    pictured = set(choose_pictured(len(order)))
    shown = [
        _case(case, rank, rank in pictured, PICTURE_BYTES // max(1, len(pictured))) for rank, case in enumerate(order)
    ]
    record = _read_json(folder / FOLDER / RECORD) or {"facts": {}, "command": "", "config": "", "versions": {}}
    return {
        "title": record["facts"].get("dataset") or folder.resolve().name,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "record": record,
        "run": _run_facts(record),
        "summary": summary,
        "structures": [{"name": name, "number": n, "colour": colour(n - 1)} for n, name in enumerate(structures, 1)],
        "numbers": {name: n for n, name in enumerate(structures, 1)},
        "statuses": STATUSES,
        "metrics": [{"key": key, "label": LABELS[key], "digits": 2 if key.endswith("mm") else 3} for key in SHOWN],
        "dice_plot": _dice_plot(folder, summary),
        "cases": shown,
        "rows": [{**row, "rank": rank} for rank, case in enumerate(order) for row in case.rows],
        "selection": _selection(len(order), len(pictured)),
        "has_reference": any(case.reference is not None for case in cases),
    }


def worst_first(cases: Sequence[ReportCase]) -> list[ReportCase]:
    """Cases by their mean Dice, the lowest first; those that failed come before, those without metrics after them."""
    dice: dict[str, dict[str, float]] = {}
    for case in cases:
        for row in case.rows:
            if row["dice"]:
                dice.setdefault(row["class"], {})[case.name] = float(row["dice"])
    means = mean_per_case(dice)
    failed = {case.name for case in cases if case.prediction is None and not case.rows}
    return sorted(cases, key=lambda case: -1.0 if case.name in failed else means.get(case.name, 2.0))


def choose_pictured(count: int) -> list[int]:
    """Positions, in the order of `worst_first`, of the cases with pictures: the worst, and a sample of the others.

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


def _case(case: ReportCase, rank: int, pictured: bool, bytes_left: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": case.name,
        "rank": rank,
        "rows": case.rows,
        "mean": mean_per_case({row["class"]: {case.name: float(row["dice"])} for row in case.rows if row["dice"]}).get(
            case.name
        ),
        "planes": [],
        "problem": case.problem,
        "pictured": pictured,
    }
    if pictured and not case.problem:
        try:
            content["planes"] = [_with_words(plane) for plane in draw_case(case.load(), bytes_left)]
        except UserError as error:  # a file that was moved since: the other cases do not depend on it
            content["problem"] = str(error)
    return content


def _with_words(plane: dict[str, Any]) -> dict[str, Any]:
    """A plane with a text for those who cannot see it, and with its slices as the script reads them."""
    start = plane["slices"][plane["start"]]
    # The page itself shows the picture of this slice: the script takes it from there.
    data = [{**each, "image": ""} if each is start else each for each in plane["slices"]]
    return {**plane, "data": data, "words": f"contours on slice {start['number']} of {plane['total']}"}


def _dice_plot(folder: Path, summary: Mapping[str, Any] | None) -> str:
    if summary is None or not (folder / "metrics.csv").is_file():
        return ""
    intervals = {name: entry["dice_interval"] for name, entry in summary["per_class"].items()}
    return dice_plot(read_dice(folder), intervals)


def _run_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = record["facts"]
    names = {
        "dataset": "Dataset",
        "labelled_cases": "Labelled cases in training",
        "unlabelled_cases": "Unlabelled cases in training",
        "checkpoint": "Model",
        "spacing_mm": "Voxels of the network (mm)",
    }
    shown = [(title, _in_words(facts[key])) for key, title in names.items() if facts.get(key) is not None]
    shown += [("Evaluated", record["ended"])] if record.get("ended") else []
    shown += [("Versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items()))] if record["versions"] else []
    return shown


def _in_words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _keep_record(folder: Path, facts: Mapping[str, Any], argv: Sequence[str]) -> None:
    words, config = list(argv), ""
    if is_command_line(words):
        config = yaml.safe_dump(
            {key: value for key, value in check_overrides(words).items() if key != "_meta_"},
            sort_keys=False,
            allow_unicode=True,
            width=120,
        )
    record = {
        "facts": dict(facts),
        "command": shell_line(["python", "-m", "monai.bundle", *words[1:]]) if config else "",
        "config": config,
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "ended": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    text = json.dumps(record, ensure_ascii=False, indent=1, default=str)
    write_text(folder / FOLDER / RECORD, text + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): run `evaluate` again.") from error
