# SPDX-License-Identifier: Apache-2.0
"""The report of a run as one self-contained HTML file."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.errors import UserError
from scripts.files import write_text
from scripts.report.advice import compare_with_training
from scripts.report.cases import find_cases
from scripts.report.content import content_of
from scripts.report.record import EVALUATION, existing_json, read_record, write_record

if TYPE_CHECKING:
    from markupsafe import Markup

logger = logging.getLogger("report")

PAGE = "report/index.html"
DASH = "\N{EN DASH}"


def write_report(
    output_dir: str | Path,
    facts: Mapping[str, Any] | None = None,
    training_images: Sequence[str] = (),
    training_record: str | Path | None = None,
    compare: str | Sequence[str] | None = None,
    argv: Sequence[str] | None = None,
) -> Path:
    """Write `report/index.html` into an output folder, from the files of its evaluation, inference or training.

    Args:
        output_dir: the folder. The page is made from this folder only, so it can be made again at any time.
        facts: statements about the evaluation that has just ended; they are stored for later calls without `facts`.
        training_images: training images, or lists with a file per channel, for the warnings; stored like `facts`.
        training_record: `run.json` of the training; it need not exist, and is stored like `facts`.
        compare: output folders of other evaluations of the same cases.
        argv: the command line of that evaluation; `None` takes that of this process.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder holds no results, if the folders in `compare` cannot be compared with it, or if the
            page cannot be written.
    """
    begun, folder = time.perf_counter(), Path(output_dir)
    cases = find_cases(folder)
    if facts is not None:
        first_channels = [image if isinstance(image, str) else image[0] for image in training_images]
        run = None if training_record is None else existing_json(Path(training_record))
        training = compare_with_training(first_channels, cases) if first_channels else None
        write_record(folder / EVALUATION, facts, run, training, argv)
    record = read_record(folder)
    if not cases and not record.get("run"):
        raise UserError(
            f"{folder} holds no metrics.csv, no label volumes and no run.json: give the output_dir of `train`, "
            "`evaluate` or `predict`."
        )
    path, others = folder / PAGE, [compare] if isinstance(compare, str) else compare or []
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
    environment.filters["code"] = as_code
    return environment.get_template("page.html").render(content)


def number(value: float | str | None, digits: int = 3) -> str:
    """Format a number for the page; `None`, NaN and an empty cell become a dash."""
    if value in (None, "") or math.isnan(float(value or 0)):
        return DASH
    return f"{float(value or 0):.{digits}f}"


def as_code(text: str) -> Markup:
    """Return a sentence as HTML, in which words between backticks are code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
