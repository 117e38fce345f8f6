# SPDX-License-Identifier: Apache-2.0
"""The training that made a model: its record, and its course from TensorBoard's files."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from scripts.report.plots import curves_plot, embeddings_plot

POINTS = 300
"""Largest number of points of a curve: neighbours are averaged, as single steps differ by chance."""

PANELS = {
    "Loss/": "Loss terms, unweighted",
    "Weight/": "Weights of the loss terms",
    "Rate/": "Learning rate",
    "Confident/": "Share of confident voxels (95 %)",
    "Memory/": "Prototypes in the memory, per class",
    "Time/": "Seconds per step",
}
"""Panels of the plot by the beginning of their tags; all other tags are validations."""

VALIDATION = "Validation"


def training_facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the record of a training (`run.json`) says, as titles and texts; what it lacks is left out."""
    settings = run.get("settings") or {}
    network = settings.get("network_def") or {}
    terms = [*(settings.get("terms") or {}), *(settings.get("network_terms") or {})]
    methods = [file for file in run.get("config_files") or [] if "methods/" in file]
    facts = [
        ("Method", ", ".join(methods) or ("the default of configs/train.yaml" if settings else "")),
        ("Loss terms", ", ".join(terms)),
        ("Network", str(network.get("_target_", "")).rpartition(".")[2]),
        ("Training steps", str(run.get("steps", ""))),
        ("Training time", _duration(run)),
        ("Seed", str(run.get("seed", ""))),
    ]
    return [(title, text) for title, text in facts if text]


def _duration(run: Mapping[str, Any]) -> str:
    try:
        seconds = (datetime.fromisoformat(run["ended"]) - datetime.fromisoformat(run["started"])).total_seconds()
    except (KeyError, TypeError, ValueError):  # the run has not ended
        return ""
    hours, minutes = divmod(round(seconds / 60), 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{text} with a break" if run.get("resumed") else text


def read_curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each scalar in TensorBoard's files of a folder; empty without such files.

    Of a run that was resumed, or started again in the same folder, the later values count: points beyond the step at
    which it went on are left out.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    # Here, because importing it takes a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it says where it looked for a further file
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    # The lowest step that is written at each time or later, from the last time to the first.
    times = sorted(((each.wall_time, each.step) for tag in tags for each in events.Scalars(tag)), reverse=True)
    lowest = dict(zip((time for time, _ in times), accumulate((step for _, step in times), min), strict=True))
    curves = {}
    for tag in tags:
        by_step = {each.step: each.value for each in events.Scalars(tag) if each.step <= lowest[each.wall_time]}
        if by_step:
            steps = sorted(by_step)
            curves[tag] = np.array(steps), np.array([by_step[step] for step in steps])
    return curves


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points of a curve, each the mean of neighbours."""
    size = -(-len(steps) // POINTS)
    cuts = np.arange(0, len(steps), max(1, size))
    counts = np.diff([*cuts, len(steps)])
    return np.add.reduceat(steps, cuts) / counts, np.add.reduceat(values, cuts) / counts


def memory_of(folders: Sequence[Path], label_names: Sequence[str]) -> str:
    """A plot of the prototypes and of voxels of the last training step; empty if no folder has them.

    Embeddings are scaled to length 1, as the contrastive loss compares their directions, and shown by their first two
    principal components.

    Args:
        folders: where TensorBoard's files may be; the newest embeddings of the first one that has some are taken.
        label_names: names of the classes, background first.
    """
    found = next(filter(None, (list(folder.glob("*/memory/tensors.tsv")) for folder in folders)), [])
    if not found:
        return ""
    # By time, not by step: an earlier run in the same folder may have been longer.
    newest = max(found, key=lambda file: file.stat().st_mtime_ns)
    points = np.loadtxt(newest, delimiter="\t", ndmin=2)
    with newest.with_name("metadata.tsv").open(encoding="utf-8", newline="") as file:
        keys = [(row["kind"], int(row["class"])) for row in csv.DictReader(file, delimiter="\t")]
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    centred = points - points.mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))  # a single point, or embeddings of one dimension
    return embeddings_plot({key: plane[[each == key for each in keys]] for key in dict.fromkeys(keys)}, label_names)


def course_of(folders: Sequence[Path], label_names: Sequence[str] = ()) -> str:
    """A plot of the course of a training; empty if no folder has TensorBoard's files.

    Args:
        folders: where the files may be; the first one that has some is taken.
        label_names: names of the classes, background first, for the memory.
    """
    curves = next(filter(None, map(read_curves, folders)), {})
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for tag, (steps, values) in curves.items():
        start = next((start for start in PANELS if tag.startswith(start)), None)
        name = tag if start is None else tag.removeprefix(start)
        if start == "Memory/" and int(name) < len(label_names):
            name = label_names[int(name)]
        curve = (steps, values) if start is None else thinned(steps, values)
        panels.setdefault(VALIDATION if start is None else PANELS[start], {})[name] = curve
    order = [*list(PANELS.values())[:3], VALIDATION, *list(PANELS.values())[3:]]
    return curves_plot({title: panels[title] for title in order if title in panels}) if panels else ""
