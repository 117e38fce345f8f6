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
from scripts.errors import UserError
from scripts.files import write_text
from scripts.report.advice import compare_with_training
from scripts.report.cases import ReportCase, find_cases
from scripts.report.content import content_of, read_json

logger = logging.getLogger("report")

FOLDER, PAGE, RECORD = "report", "index.html", "evaluation.json"
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")
NO_RECORD: dict[str, Any] = {"facts": {}, "command": "", "config": "", "versions": {}}
DASH = "\N{EN DASH}"


def write_report(
    output_dir: str | Path,
    facts: Mapping[str, Any] | None = None,
    training_images: Sequence[str] = (),
    training_record: str | Path | None = None,
    compare: str | Sequence[str] | None = None,
    argv: Sequence[str] | None = None,
) -> Path:
    """Write `report/index.html` into an output folder, from the files of its evaluation or inference.

    Args:
        output_dir: the folder. The page is made from this folder only, so it can be made again at any time.
        facts: statements about the run that has just ended; they are stored for later calls without `facts`.
        training_images: training images, or lists with a file per channel, for the warnings; stored like `facts`.
        training_record: `run.json` of the training; it need not exist, and is stored like `facts`.
        compare: output folders of other evaluations of the same cases.
        argv: the command line of that run; `None` takes that of this process.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder holds no results of evaluation or inference, if the folders in `compare` cannot be
            compared with it, or if the page cannot be written.
    """
    begun, folder = time.perf_counter(), Path(output_dir)
    cases = find_cases(folder)
    if not cases:
        raise UserError(
            f"{folder} holds no metrics.csv and no label volumes: give the output_dir of `evaluate` or `predict`."
        )
    if facts is not None:
        first_channels = [image if isinstance(image, str) else image[0] for image in training_images]
        run = None if training_record is None else read_json(Path(training_record))
        _keep_record(folder, facts, run, first_channels, cases, sys.argv if argv is None else argv)
    record = read_json(folder / FOLDER / RECORD) or NO_RECORD
    path, others = folder / FOLDER / PAGE, [compare] if isinstance(compare, str) else compare or []
    write_text(path, render(content_of(folder, cases, record, others)))
    logger.info(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - begun:.0f} s.")
    return path


def render(content: Mapping[str, Any]) -> str:
    """Render the page as HTML. Jinja2 escapes every name and number in it."""
    import jinja2  # imported here, because only this command needs it

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
    """Format a number for the page; `None`, NaN and an empty cell become a dash."""
    if value in (None, "") or math.isnan(float(value or 0)):
        return DASH
    return f"{float(value or 0):.{digits}f}"


def _keep_record(
    folder: Path,
    facts: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    training_images: Sequence[str],
    cases: Sequence[ReportCase],
    argv: Sequence[str],
) -> None:
    words, config = list(argv), ""
    if is_command_line(words):
        settings = {key: value for key, value in check_overrides(words).items() if key != "_meta_"}
        config = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    record = {
        "facts": dict(facts),
        "command": shell_line(["python", "-m", "monai.bundle", *words[1:]]) if config else "",
        "config": config,
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "training": compare_with_training(training_images, cases) if training_images else None,
        "run": run,
        "ended": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    write_text(folder / FOLDER / RECORD, json.dumps(record, ensure_ascii=False, indent=1, default=str) + "\n")
