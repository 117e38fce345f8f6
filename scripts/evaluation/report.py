# SPDX-License-Identifier: Apache-2.0
"""Handlers for MONAI's evaluator that write the results: `metrics.csv`, `summary.json` and label volumes."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys
from torch import distributed

from scripts.distributed.collectives import all_gather_items, is_rank0, num_ranks, rank
from scripts.errors import UserError
from scripts.evaluation.metrics import METRICS, TOLERANCE_MM
from scripts.evaluation.statistics import COLUMNS, case_rows, foreground, region_labels, summarise
from scripts.files import csv_text, write_text
from scripts.images.monai import label_dtype
from scripts.images.write import write_volume

CONFIDENCE = "confidence"
"""Optional key of an output, and last column of `metrics.csv`: the network's confidence for each class."""

T = TypeVar("T")

ENDINGS = (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npz", ".npy", ".dcm", ".tif")


class CaseHandler:
    """Base class of handlers that collect data of every case of an evaluation and write it at the end.

    Subclasses implement `collect`, which appends the cases of an iteration to `cases`, and `finish`, which writes them.
    """

    cases: list[tuple[str, Any]]
    """The file that names each case, and the collected data."""

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator that decollates its batches."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def _reset(self, engine: Engine) -> None:
        self.cases = []

    def collect(self, engine: Engine) -> None:
        """Append the cases of an iteration to `cases`."""
        raise NotImplementedError

    def finish(self, engine: Engine) -> None:
        """Write the collected data."""
        raise NotImplementedError


class SegmentationReport(CaseHandler):
    """Handler that reports the metrics of all cases of a `SupervisedEvaluator`.

    After each iteration it reads `engine.state.output`, a decollated list of dicts in which `pred` and `label` are
    label volumes `(1, D, H, W)` on the grid of the reference file; postprocessing must already have inverted the
    resampling and taken the argmax. The spacing is taken from the label's MetaTensor. A case is named after its image
    file or, if that is unknown, its label file. If an output has a `confidence` for each class, it is written to
    `metrics.csv`.

    At the end of a run the handler writes the report, logs the table and sets `engine.state.summary`. In distributed
    evaluation, rank 0 writes the cases of all ranks, and a case that several ranks evaluated counts once.

    Args:
        label_names: name of each label value; 0 is background and gets no row.
        output_dir: folder for `metrics.csv` and `summary.json`.
        extra: additional entries of `summary.json`.
        surface_tolerance_mm: tolerance of surface Dice, the same for all cases; also an entry of `summary.json`.
        regions: regions to report instead of the classes; maps the name of a region to the names of its classes.
            Regions may overlap, and means are taken over the regions. `None` reports the classes.

    Raises:
        UserError: if a region does not consist of classes.
        ValueError: if `label_names` has no foreground or repeats a name; during a run, if a volume is not as described
            above.
    """

    def __init__(
        self,
        label_names: Mapping[int, str],
        output_dir: str | os.PathLike,
        extra: Mapping[str, Any] | None = None,
        surface_tolerance_mm: float = TOLERANCE_MM,
        regions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        foreground(label_names)
        self.label_names, self.members = reported(label_names, regions)
        self.output_dir = output_dir
        self.tolerance_mm = surface_tolerance_mm
        self.extra = {"surface_tolerance_mm": surface_tolerance_mm, **(extra or {})}
        self.logger = logging.getLogger("SegmentationReport")
        self.cases: list[tuple[str, list[dict[str, Any]]]] = []

    def collect(self, engine: Engine) -> None:
        if not isinstance(engine.state.output, list):
            raise ValueError(
                "engine.state.output must be a decollated list of dicts (an evaluator with decollate=True), "
                f"got {type(engine.state.output).__name__}."
            )
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            label = output[CommonKeys.LABEL]
            if not isinstance(label, MetaTensor):
                raise ValueError(f"label must be a MetaTensor with a spacing, got {type(label).__name__}.")
            path = case_file(batch, label, len(self.cases) + 1)
            volumes = _volume("pred", output[CommonKeys.PRED]), _volume("label", label)
            rows = case_rows(path, *volumes, label.pixdim.tolist(), self.label_names, self.tolerance_mm, self.members)
            if CONFIDENCE in output and self.members is None:
                rows = [{**row, CONFIDENCE: float(output[CONFIDENCE][row["label"]])} for row in rows]
            self.cases.append((path, rows))

    def finish(self, engine: Engine) -> None:
        cases = _of_all_processes(self.cases)
        names = case_names([path for path, _ in cases])
        rows = [{**row, "case": name} for name, (_, own) in zip(names, cases, strict=True) for row in own]
        if distributed.is_initialized() and distributed.get_rank() > 0:
            engine.state.summary = summarise(rows, self.label_names) | self.extra
            return
        engine.state.summary = write_report(rows, self.label_names, self.output_dir, self.extra)
        self.logger.info("%s: %d cases\n%s", self.output_dir, len(cases), format_summary(engine.state.summary))


def reported(
    label_names: Mapping[int, str], regions: Mapping[str, Sequence[str]] | None
) -> tuple[dict[int, str], dict[int, list[int]] | None]:
    """Return `label_names` and `members` of `case_rows`, for a report on the regions or on the classes.

    Raises:
        UserError: if a region does not consist of classes.
    """
    if not regions:
        return dict(label_names), None
    try:
        return region_labels(label_names, regions)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}: correct it in the dataset's YAML.") from error


def write_report(
    rows: Sequence[Mapping[str, Any]],
    label_names: Mapping[int, str],
    output_dir: str | os.PathLike,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `metrics.csv` (one line per row, NaN as an empty cell) and `summary.json` into `output_dir`.

    Args:
        rows: rows of `scripts.evaluation.statistics.case_rows`.
        label_names: name of each label value; 0 is background.
        output_dir: created if needed; existing files are replaced.
        extra: additional entries of the summary that can be written as JSON, such as checkpoint and split.

    Returns:
        The written summary, which consists of the result of `summarise` and `extra`.

    Raises:
        ValueError: if `extra` repeats a key of the summary or contains NaN or infinity; also as in `summarise`.
    """
    summary = summarise(rows, label_names)
    taken = sorted(set(summary) & set(extra or {}))
    if taken:
        raise ValueError(f"extra must not repeat keys of the summary, got {', '.join(taken)}.")
    summary.update(extra or {})
    # Both texts are made before either file is written, so that an error leaves an earlier report unchanged.
    texts = {"metrics.csv": _csv_text(rows), "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n"}
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(Path(output_dir) / name, text)
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """Format the result of `summarise` as a plain-text table: one line per class, then the mean over classes."""
    head = ["class", "cases", "dice", "95 % interval", "std", "jaccard", "95hd vox", "asd vox", "95hd mm", "asd mm"]
    head += ["surf dice", "missed", "false+"]
    lines = [head]
    for name, c in summary["per_class"].items():
        lines.append([name, *_cells(c, c["std_dice"])])
    lines.append(["mean", *_cells(summary, None)])
    tolerance = summary.get("surface_tolerance_mm")
    notes = [summary["convention"], summary["interval_note"]]
    notes += [] if tolerance is None else [f"Surface Dice accepts distances of up to {tolerance:g} mm."]
    return "\n".join([*table_lines(lines), *notes])


def case_file(batch: Mapping[str, Any], label: Any, number: int) -> str:
    """Return the file that names a case: its image or, if that is unknown, its label; if both are unknown, a number.

    Args:
        batch: a decollated item of an evaluator's batch.
        label: label volume of the item.
        number: number of the case in this process, counted from 1.
    """
    return _file_of(batch.get(CommonKeys.IMAGE)) or _file_of(label) or _number_of(number)


def case_names(paths: Sequence[str]) -> list[str]:
    """Return short and distinct names of cases from the paths of their files, in the same order.

    A name is the file name without its ending. If several paths give the same name, the parent folder is prepended to
    each of them, then the folder above it, until the names differ. The second of two equal paths gets `#2`.
    """
    depths = [1] * len(paths)
    while True:
        names = [_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        # A name cannot have more parts than its path, so the loop also ends for equal paths.
        grown = [
            depth + 1 if len({p for p, n in zip(paths, names, strict=True) if n == name}) > 1 else depth
            for name, depth in zip(names, depths, strict=True)
        ]
        grown = [min(g, max(1, len(PurePath(p).parts))) for g, p in zip(grown, paths, strict=True)]
        if grown == depths:
            return _numbered(names)
        depths = grown


def _cells(entry: Mapping[str, Any], std_dice: float | None) -> list[str]:
    dice, jaccard, *distances, surface_dice = (entry[f"mean_{m}"] for m in METRICS)
    return [
        str(entry["num_cases"]),
        decimals(dice),
        interval_text(entry["dice_interval"]),
        *map(decimals, (std_dice, jaccard)),
        *("-" if v is None else f"{v:.2f}" for v in distances),
        decimals(surface_dice),
        str(entry["missed"]),
        str(entry["false_positives"]),
    ]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a text table: first column left-aligned, others right-aligned, and a rule above the last row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [*text[:-1], "-" * len(text[0]), text[-1]]


def decimals(value: float | None) -> str:
    """Format a number with four decimals; `None` becomes a dash."""
    return "-" if value is None else f"{value:.4f}"


def interval_text(interval: Sequence[float] | None) -> str:
    """Format an interval with three decimals; `None` becomes a dash."""
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the columns `COLUMNS` of rows, and their confidence if they have one, as CSV; NaN is an empty cell."""
    columns = (*COLUMNS, CONFIDENCE) if any(CONFIDENCE in row for row in rows) else COLUMNS
    cells = [[row[column] for column in columns] for row in rows]
    return csv_text(columns, [["" if isinstance(v, float) and math.isnan(v) else v for v in row] for row in cells])


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


def _of_all_processes(cases: list[tuple[str, T]]) -> list[tuple[str, T]]:
    if num_ranks() == 1:
        return cases
    # A distributed sampler repeats cases so that all processes have the same number; each must count once.
    return list({path: (path, content) for path, content in all_gather_items(cases)}.values())


def _file_of(item: Any) -> str | None:
    return item.meta.get("filename_or_obj") if isinstance(item, MetaTensor) else None


def _number_of(count: int) -> str:
    # Each rank counts its own cases, and cases with equal names on two ranks would count as one case.
    return f"case_{count}_of_rank_{distributed.get_rank()}" if distributed.is_initialized() else f"case_{count}"


def _volume(name: str, tensor: Any) -> Any:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise ValueError(f"{name} must be a label volume of shape (1, D, H, W), got shape {tuple(tensor.shape)}.")
    return tensor[0]


MANIFEST = "cases.json"
KINDS = {"prediction": "", "reference": "_reference"}
"""Volumes that are kept for each case, and the suffix of their file names after the name of the case."""


class KeptVolumes(CaseHandler):
    """Handler that writes prediction and reference of each case as class indices, on the grid of the label file.

    After each iteration it reads `engine.state.batch` and `engine.state.output`, and names the cases, as
    `SegmentationReport` does. The files are `NAME.nii.gz` (prediction) and `NAME_reference.nii.gz`; `cases.json` lists
    them with the image file. In distributed evaluation each process writes its own cases, and the first process writes
    the list.

    Args:
        output_dir: folder for the files, created if needed; with `None` nothing is written.
        label_names: name of each class, background first.
    """

    def __init__(self, output_dir: str | Path | None, label_names: Sequence[str]) -> None:
        self.output_dir, self.label_names = None if output_dir is None else Path(output_dir), list(label_names)
        self.cases: list[tuple[str, dict[str, Any]]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler, unless `output_dir` is `None`."""
        if self.output_dir is not None:
            super().attach(engine)

    def collect(self, engine: Engine) -> None:
        assert self.output_dir is not None
        dtype = label_dtype(range(len(self.label_names)))
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            label, number = output[CommonKeys.LABEL], len(self.cases) + 1
            case: dict[str, Any] = {"image": getattr(batch.get(CommonKeys.IMAGE), "meta", {}).get("filename_or_obj")}
            for kind in KINDS:
                # Final names are known only at the end, because files in two folders may have the same name.
                case[kind] = f"case_{number}_of_process_{rank()}_{kind}.nii.gz"
                volume = output[CommonKeys.PRED] if kind == "prediction" else label
                classes = volume[0].cpu().numpy().astype(dtype)
                write_volume(self.output_dir / case[kind], classes, label.affine.cpu().numpy())
            self.cases.append((case_file(batch, label, number), case))

    def finish(self, engine: Engine) -> None:
        assert self.output_dir is not None
        cases = _of_all_processes(self.cases)
        if not is_rank0():
            return
        listed = []
        for name, (_, case) in zip(case_names([path for path, _ in cases]), cases, strict=True):
            # Names come from the datalist: a slash in a name must not lead to another folder.
            files = {kind: re.sub(r"[/\\]", "_", name) + f"{ending}.nii.gz" for kind, ending in KINDS.items()}
            for kind, file in files.items():
                (self.output_dir / case[kind]).replace(self.output_dir / file)
            listed.append({"case": name, "image": case["image"], **files})
        for left in self.output_dir.glob("case_*_of_process_*.nii.gz"):
            left.unlink()
        content = {"label_names": self.label_names, "cases": listed}
        write_text(self.output_dir / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
