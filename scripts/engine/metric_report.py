# SPDX-License-Identifier: Apache-2.0
"""An evaluation report of MONAI's evaluator: one row per case and class, one summary, two files."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys
from torch import distributed

from scripts.functional.report import COLUMNS, case_names, case_rows, foreground, format_summary, summarise
from scripts.whole_files import write_text


def write_report(
    rows: Sequence[Mapping[str, Any]],
    label_names: Mapping[int, str],
    output_dir: str | os.PathLike,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `metrics.csv` (one line a row, NaN as an empty cell) and `summary.json` into `output_dir`.

    Each file is written beside its place and then moved there, so that a reader never sees half of one.

    Args:
        rows: of `scripts.functional.report.case_rows`.
        label_names: name of each label value; 0 is background.
        output_dir: made where it does not exist; files of these names are replaced.
        extra: what else the summary should say (checkpoint, split), JSON-safe, under keys of its own.

    Returns:
        The summary as written: `summarise` and `extra`.

    Raises:
        ValueError: when `extra` has a key of the summary or holds NaN or infinity, and as `summarise`.
    """
    summary = summarise(rows, label_names)
    taken = sorted(set(summary) & set(extra or {}))
    if taken:
        raise ValueError(f"extra must have keys that the summary does not have, got {', '.join(taken)}.")
    summary.update(extra or {})
    # Both texts before either file: a value that JSON refuses then leaves an earlier report as it was.
    texts = {"metrics.csv": _csv_text(rows), "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n"}
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(Path(output_dir) / name, text)
    return summary


class SegmentationReport:
    """Handler that reports on every case that a `SupervisedEvaluator` sees.

    It reads `engine.state.output` after each iteration: a decollated list of dicts in which `pred` and `label` are
    label volumes `(1, D, H, W)` on the grid of the reference file (so postprocessing must have inverted resampling
    and taken the argmax). Spacing is that of the label MetaTensor; the case is named after the image's file, else
    the label's. When the run ends it writes the report, logs the table and sets `engine.state.summary`. With several
    processes the first writes the cases of all, a file that several of them saw once.

    Args:
        label_names: name of each label value; 0 is background and gets no row.
        output_dir: folder of `metrics.csv` and `summary.json`.
        extra: what else `summary.json` should say.

    Raises:
        ValueError: when `label_names` has no foreground or one name twice; in a run, when a volume is not as above.
    """

    def __init__(
        self, label_names: Mapping[int, str], output_dir: str | os.PathLike, extra: Mapping[str, Any] | None = None
    ) -> None:
        foreground(label_names)
        self.label_names = dict(label_names)
        self.output_dir = output_dir
        self.extra = extra
        self.logger = logging.getLogger("SegmentationReport")
        self._cases: list[tuple[str, list[dict[str, Any]]]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _reset(self, engine: Engine) -> None:
        self._cases = []

    def _collect(self, engine: Engine) -> None:
        if not isinstance(engine.state.output, list):
            raise ValueError(
                "engine.state.output must be a decollated list of dicts (an evaluator with decollate=True), "
                f"got {type(engine.state.output).__name__}."
            )
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            label = output[CommonKeys.LABEL]
            if not isinstance(label, MetaTensor):
                raise ValueError(f"label must be a MetaTensor, which knows its spacing, got {type(label).__name__}.")
            path = _file_of(batch.get(CommonKeys.IMAGE)) or _file_of(label) or _number_of(len(self._cases) + 1)
            volumes = _volume("pred", output[CommonKeys.PRED]), _volume("label", label)
            self._cases.append((path, case_rows(path, *volumes, label.pixdim.tolist(), self.label_names)))

    def _finish(self, engine: Engine) -> None:
        cases = _of_all_processes(self._cases)
        names = case_names([path for path, _ in cases])
        rows = [{**row, "case": name} for name, (_, own) in zip(names, cases, strict=True) for row in own]
        if distributed.is_initialized() and distributed.get_rank() > 0:
            engine.state.summary = summarise(rows, self.label_names) | dict(self.extra or {})
            return
        engine.state.summary = write_report(rows, self.label_names, self.output_dir, self.extra)
        self.logger.info("%s: %d cases\n%s", self.output_dir, len(cases), format_summary(engine.state.summary))


def _of_all_processes(cases: list[tuple[str, list[dict[str, Any]]]]) -> list[tuple[str, list[dict[str, Any]]]]:
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return cases
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, cases)
    # A distributed sampler repeats cases until every process has as many; those must not weigh twice.
    return list({path: (path, rows) for part in gathered for path, rows in part}.values())


def _file_of(item: Any) -> str | None:
    return item.meta.get("filename_or_obj") if isinstance(item, MetaTensor) else None


def _number_of(count: int) -> str:
    # Every process counts its own cases, and equal names of two processes would be taken for one case.
    return f"case_{count}_of_rank_{distributed.get_rank()}" if distributed.is_initialized() else f"case_{count}"


def _volume(name: str, tensor: Any) -> Any:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise ValueError(f"{name} must be a label volume of shape (1, D, H, W), got shape {tuple(tensor.shape)}.")
    return tensor[0]


def _csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return text.getvalue()
