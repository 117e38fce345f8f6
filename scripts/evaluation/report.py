# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: a handler of MONAI's evaluator that writes `metrics.csv` and `summary.json`."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys
from torch import distributed

from scripts.evaluation.metrics import METRICS
from scripts.evaluation.statistics import COLUMNS, case_rows, foreground, summarise
from scripts.files import csv_text, write_text

ENDINGS = (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npz", ".npy", ".dcm", ".tif")


class SegmentationReport:
    """Handler that reports on every case that a `SupervisedEvaluator` sees.

    It reads `engine.state.output` after each iteration: a decollated list of dicts in which `pred` and `label` are
    label volumes `(1, D, H, W)` on the grid of the reference file (so postprocessing must have inverted resampling
    and taken the argmax). Spacing is that of the label MetaTensor; the case is named after the image's file, or else
    the label's. At the end it writes the report, logs the table and sets `engine.state.summary`. Of several processes
    the first writes the cases of all; a case that several of them had counts once.

    Args:
        label_names: name of each label value; 0 is background and gets no row.
        output_dir: folder of `metrics.csv` and `summary.json`.
        extra: further entries of `summary.json`.

    Raises:
        ValueError: if `label_names` has no foreground or one name twice; in a run, when a volume is not as above.
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
        """Register the handler with an evaluator."""
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


def write_report(
    rows: Sequence[Mapping[str, Any]],
    label_names: Mapping[int, str],
    output_dir: str | os.PathLike,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `metrics.csv` (one line per row, NaN as an empty cell) and `summary.json` into `output_dir`.

    Args:
        rows: of `scripts.evaluation.statistics.case_rows`.
        label_names: name of each label value; 0 is background.
        output_dir: created if needed; files of these names are replaced.
        extra: further entries of the summary (checkpoint, split), JSON-safe.

    Returns:
        The summary as written: `summarise` and `extra`.

    Raises:
        ValueError: if `extra` has a key of the summary or holds NaN or infinity, and as `summarise`.
    """
    summary = summarise(rows, label_names)
    taken = sorted(set(summary) & set(extra or {}))
    if taken:
        raise ValueError(f"extra must have keys that the summary does not have, got {', '.join(taken)}.")
    summary.update(extra or {})
    # Both texts are made before either file is written, so that an error leaves an earlier report as it was.
    texts = {"metrics.csv": _csv_text(rows), "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n"}
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(Path(output_dir) / name, text)
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """A summary of `summarise` as an aligned plain-text table: one line per class, then the mean over classes."""
    head = ["class", "cases", "dice", "std", "jaccard", "95hd vox", "asd vox", "95hd mm", "asd mm", "missed", "false+"]
    lines = [head]
    for name, c in summary["per_class"].items():
        lines.append([name, *_cells(c, c["std_dice"])])
    lines.append(["mean", *_cells(summary, None)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text.insert(-1, "-" * len(text[0]))
    return "\n".join([*text, summary["convention"]])


def case_names(paths: Sequence[str]) -> list[str]:
    """Short distinct names of cases, from the paths of their files, in the same order.

    A name is the file's name without the image's ending. If several paths would have the same name, each of them gets
    its parent folder in front, then that folder's parent, until they differ. The second of two equal paths gets `#2`.
    """
    depths = [1] * len(paths)
    while True:
        names = [_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        # A path without further folders cannot grow, which also ends the loop for equal paths.
        grown = [
            depth + 1 if len({p for p, n in zip(paths, names, strict=True) if n == name}) > 1 else depth
            for name, depth in zip(names, depths, strict=True)
        ]
        grown = [min(g, max(1, len(PurePath(p).parts))) for g, p in zip(grown, paths, strict=True)]
        if grown == depths:
            return _numbered(names)
        depths = grown


def _cells(entry: Mapping[str, Any], std_dice: float | None) -> list[str]:
    dice, jaccard, *distances = (entry[f"mean_{m}"] for m in METRICS)
    return [
        str(entry["num_cases"]),
        *("-" if v is None else f"{v:.4f}" for v in (dice, std_dice, jaccard)),
        *("-" if v is None else f"{v:.2f}" for v in distances),
        str(entry["missed"]),
        str(entry["false_positives"]),
    ]


def _csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`COLUMNS` of rows; NaN is an empty cell."""
    cells = [[row[column] for column in COLUMNS] for row in rows]
    return csv_text(COLUMNS, [["" if isinstance(v, float) and math.isnan(v) else v for v in row] for row in cells])


def _name(path: str, depth: int) -> str:
    *folders, file = PurePath(path).parts[-depth:] or (path,)
    while file.lower().endswith(ENDINGS) and PurePath(file).stem != file:
        file = PurePath(file).stem
    return "/".join([*(f.strip("/") for f in folders), file])


def _numbered(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered


def _of_all_processes(cases: list[tuple[str, list[dict[str, Any]]]]) -> list[tuple[str, list[dict[str, Any]]]]:
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return cases
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, cases)
    # A distributed sampler repeats cases so that all processes have the same number; each must count once.
    return list({path: (path, rows) for part in gathered for path, rows in part}.values())


def _file_of(item: Any) -> str | None:
    return item.meta.get("filename_or_obj") if isinstance(item, MetaTensor) else None


def _number_of(count: int) -> str:
    # Every process counts its own cases; equal names of two processes would be taken for the same case.
    return f"case_{count}_of_rank_{distributed.get_rank()}" if distributed.is_initialized() else f"case_{count}"


def _volume(name: str, tensor: Any) -> Any:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise ValueError(f"{name} must be a label volume of shape (1, D, H, W), got shape {tuple(tensor.shape)}.")
    return tensor[0]
