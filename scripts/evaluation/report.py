# SPDX-License-Identifier: Apache-2.0
"""An evaluation report: one row per case and class, and a summary."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from statistics import fmean, pstdev
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys
from torch import distributed

from scripts.evaluation.metrics import CONVENTION, METRICS, structure_metrics
from scripts.files import write_text

COLUMNS = ("case", "class", "label", *METRICS, "status")
BACKGROUND = 0
ENDINGS = (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5", ".hdf5", ".npz", ".npy", ".dcm", ".tif")


def case_rows(
    case_name: str,
    prediction: NdarrayOrTensor,
    reference: NdarrayOrTensor,
    spacing_mm: Sequence[float] | None,
    label_names: Mapping[int, str],
) -> list[dict[str, Any]]:
    """The metrics of one case, one row per foreground class.

    Args:
        case_name: what the column `case` says.
        prediction: label volume `(D, H, W)`, whole numbers of any type.
        reference: label volume of the same shape.
        spacing_mm: size of a voxel along D, H, W in mm; `None` where it is unknown.
        label_names: name of each label value; 0 is background and gets no row. Voxels of a value that has no name
            belong to no class.

    Returns:
        Dicts with the keys `COLUMNS`: `class` is the name, `label` the value in the volumes, the rest is described at
        `structure_metrics`. In the order of the label values.

    Raises:
        ValueError: when a volume is not three-dimensional or not of whole numbers, the shapes differ, `spacing_mm` is
            not three positive numbers, or `label_names` has no foreground or one name twice.
    """
    volumes = _label_volume("prediction", prediction), _label_volume("reference", reference)
    rows = []
    for label, name in foreground(label_names).items():
        metrics = structure_metrics(volumes[0] == label, volumes[1] == label, spacing_mm)
        rows.append({"case": case_name, "class": name, "label": label, **metrics})
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], label_names: Mapping[int, str]) -> dict[str, Any]:
    """Means over cases and foreground classes, ready for JSON.

    A mean is taken over the cases of each class first and over the classes then, so that a class weighs the same
    however many cases show it. Rows of status `absent` take no part.

    Args:
        rows: of `case_rows`, of any number of cases.
        label_names: as for `case_rows`.

    Returns:
        `mean_<metric>` for each of `METRICS`, `num_cases` (distinct names), `missed`, `false_positives`, `per_class`
        (by name: the same means, `std_dice` (population), `num_cases` counted, `missed`, `false_positives`) and
        `convention`. `None` where there was nothing to count, never NaN.

    Raises:
        ValueError: when a row is of a label that `label_names` does not name, or `label_names` is wrong as for
            `case_rows`.
    """
    classes = foreground(label_names)
    unknown = sorted({row["label"] for row in rows} - set(classes))
    if unknown:
        raise ValueError(f"label_names must name every label of rows, {sorted(classes)} does not have {unknown}.")
    per_class = {name: _class_summary([r for r in rows if r["label"] == label]) for label, name in classes.items()}
    means = {f"mean_{m}": _mean([c[f"mean_{m}"] for c in per_class.values()]) for m in METRICS}
    return {
        **means,
        "num_cases": len({row["case"] for row in rows}),
        "missed": sum(c["missed"] for c in per_class.values()),
        "false_positives": sum(c["false_positives"] for c in per_class.values()),
        "per_class": per_class,
        "convention": CONVENTION,
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """A summary of `summarise` as an aligned plain-text table: a line a class, then the mean over classes."""
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

    A name is the file's name without image endings. Where several paths would have the same name, each of them gets
    its parent folder in front, then that folder's parent, until they differ. A path that comes twice gets `#2`.
    """
    depths = [1] * len(paths)
    while True:
        names = [_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        # A path with no folders left cannot grow, which also ends the loop for paths that are the same.
        grown = [
            depth + 1 if len({p for p, n in zip(paths, names, strict=True) if n == name}) > 1 else depth
            for name, depth in zip(names, depths, strict=True)
        ]
        grown = [min(g, max(1, len(PurePath(p).parts))) for g, p in zip(grown, paths, strict=True)]
        if grown == depths:
            return _numbered(names)
        depths = grown


def foreground(label_names: Mapping[int, str]) -> dict[int, str]:
    """`label_names` without background, in the order of the label values.

    Raises:
        ValueError: when no foreground is left, a label value is not a whole number, or a name stands twice.
    """
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in label_names):
        raise ValueError(f"label_names must have whole numbers as keys, got {list(label_names)}.")
    classes = {label: label_names[label] for label in sorted(label_names) if label != BACKGROUND}
    if not classes:
        raise ValueError(f"label_names must name at least one label other than 0, got {dict(label_names)}.")
    if len(set(classes.values())) < len(classes):
        raise ValueError(f"label_names must give each label a name of its own, got {dict(label_names)}.")
    return classes


def _label_volume(name: str, array: NdarrayOrTensor) -> torch.Tensor:
    volume = convert_to_tensor(array, device="cpu", track_meta=False)
    if volume.ndim != 3:
        raise ValueError(f"{name} must be a label volume of shape (D, H, W), got shape {tuple(volume.shape)}.")
    if volume.is_floating_point() and not (volume == volume.round()).all():
        # Probabilities compared with label values would score 0 without a word.
        other = volume[volume != volume.round()][0].item()
        raise ValueError(f"{name} must be a label volume of whole numbers, got a voxel of value {other}.")
    return volume


def _class_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = [row for row in rows if row["status"] != "absent"]
    dice = [row["dice"] for row in counted]
    statuses = Counter(row["status"] for row in counted)
    return {
        **{f"mean_{m}": _mean([row[m] for row in counted]) for m in METRICS},
        "std_dice": pstdev(dice) if dice else None,
        "num_cases": len(counted),
        "missed": statuses["missed"],
        "false_positives": statuses["false_positive"],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    # NaN here is a distance in mm of a case whose spacing is unknown.
    known = [v for v in values if v is not None and not math.isnan(v)]
    return fmean(known) if known else None


def _cells(entry: Mapping[str, Any], std_dice: float | None) -> list[str]:
    dice, jaccard, *distances = (entry[f"mean_{m}"] for m in METRICS)
    return [
        str(entry["num_cases"]),
        *("-" if v is None else f"{v:.4f}" for v in (dice, std_dice, jaccard)),
        *("-" if v is None else f"{v:.2f}" for v in distances),
        str(entry["missed"]),
        str(entry["false_positives"]),
    ]


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


def write_report(
    rows: Sequence[Mapping[str, Any]],
    label_names: Mapping[int, str],
    output_dir: str | os.PathLike,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `metrics.csv` (one line a row, NaN as an empty cell) and `summary.json` into `output_dir`.

    Each file is written beside its place and then moved there, so that a reader never sees half of one.

    Args:
        rows: of `scripts.evaluation.report.case_rows`.
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
