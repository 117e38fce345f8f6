# SPDX-License-Identifier: Apache-2.0
"""The training of a model: its record, and its curves from TensorBoard's files."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from scripts.report.plots import TOTAL, curves_plot, embeddings_plot

POINTS = 300
"""Maximum number of points of a curve. Neighbours are averaged, because the values of single steps are noisy."""

PANELS = {
    "Loss/": "Loss terms, unweighted",
    "Weight/": "Weights of the loss terms",
    "Rate/": "Learning rate",
    "Confident/": "Share of confident voxels (95 %)",
    "Memory/": "Prototypes in the memory, per class",
    "Time/": "Seconds per step",
}
"""Titles of the panels by the prefix of their tags; all other tags are validations."""

VALIDATION = "Validation"


def training_facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Summarise the record of a training (`run.json`) as titles and texts; missing entries are left out."""
    settings = run.get("settings") or {}
    network = settings.get("network_def") or {}
    terms = [*(settings.get("terms") or {}), *(settings.get("network_terms") or {})]
    methods = [file for file in run.get("config_files") or [] if "methods/" in file]
    facts = [
        ("Method", ", ".join(methods) or ("self-training with contrast (configs/train.yaml)" if settings else "")),
        ("Loss terms", ", ".join(terms)),
        ("Network", str(network.get("_target_", "")).rpartition(".")[2]),
        ("Training steps", str(run.get("steps", ""))),
        ("Training time", _duration(run)),
        ("Seed", str(run.get("seed", ""))),
        ("Bundle in training", _bundle(run)),
    ]
    return [(title, text) for title, text in facts if text]


def _bundle(run: Mapping[str, Any]) -> str:
    """Return the version of the bundle and its commit, which has a plus sign if files differed from it."""
    git = run.get("git") or {}
    commit = f", commit {git['commit'][:10]}{'+' if git.get('changed') else ''}" if git.get("commit") else ""
    version = (run.get("versions") or {}).get("bundle")
    return f"version {version}{commit}" if version else ""


def _duration(run: Mapping[str, Any]) -> str:
    try:
        seconds = (datetime.fromisoformat(run["ended"]) - datetime.fromisoformat(run["started"])).total_seconds()
    except (KeyError, TypeError, ValueError):  # the run has not ended
        return ""
    hours, minutes = divmod(round(seconds / 60), 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{text} with a break" if run.get("resumed") else text


def read_curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read steps and values of each scalar in TensorBoard's files of a folder; empty without such files.

    If a run was resumed, or started again in the same folder, the later values count: earlier points beyond the step at
    which it continued are left out.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    # Imported here, because it takes a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it logs each search for more files
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    # For each time, from the last to the first: the lowest step that is written at this time or later.
    times = sorted(((each.wall_time, each.step) for tag in tags for each in events.Scalars(tag)), reverse=True)
    lowest = dict(zip((time for time, _ in times), accumulate((step for _, step in times), min), strict=True))
    curves = {}
    for tag in tags:
        # By time, because files that begin in the same second are read in the order of their names.
        scalars = sorted(events.Scalars(tag), key=attrgetter("wall_time"))
        by_step = {each.step: each.value for each in scalars if each.step <= lowest[each.wall_time]}
        if by_step:
            steps = sorted(by_step)
            curves[tag] = np.array(steps), np.array([by_step[step] for step in steps])
    return curves


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most `POINTS` points, each the mean of neighbouring points."""
    size = -(-len(steps) // POINTS)
    cuts = np.arange(0, len(steps), max(1, size))
    counts = np.diff([*cuts, len(steps)])
    return np.add.reduceat(steps, cuts) / counts, np.add.reduceat(values, cuts) / counts


def memory_of(folders: Sequence[Path], label_names: Sequence[str]) -> str:
    """Plot the prototypes and voxels of the last training step; return an empty string if no folder has them.

    Embeddings are scaled to length 1, because the contrastive loss compares their directions, and are projected to
    their first two principal components.

    Args:
        folders: folders that may hold TensorBoard's files; the newest embeddings in the first suitable one are used.
        label_names: names of the classes, background first.
    """
    found = next(filter(None, (list(folder.glob("*/memory/tensors.tsv")) for folder in folders)), [])
    if not found:
        return ""
    # By time and not by step, because an earlier run in the same folder may have been longer.
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
    """Plot the training curves; return an empty string if no folder has TensorBoard's files.

    Args:
        folders: folders that may hold the files; the first one that has some is used.
        label_names: names of the classes, background first, for the memory.
    """
    curves = next(filter(None, map(read_curves, folders)), {})
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for tag, (steps, values) in curves.items():
        start = next((start for start in PANELS if tag.startswith(start)), None)
        name = tag if start is None else tag.removeprefix(start)
        if start == "Memory/" and int(name) < len(label_names):
            name = label_names[int(name)]
        if start == "Loss/" and name == "total":
            name = TOTAL
        curve = (steps, values) if start is None else thinned(steps, values)
        panels.setdefault(VALIDATION if start is None else PANELS[start], {})[name] = curve
    order = [*list(PANELS.values())[:3], VALIDATION, *list(PANELS.values())[3:]]
    if not panels:
        return ""
    return curves_plot(
        {title: panels[title] for title in order if title in panels},
        label_names,
        {PANELS["Confident/"]: (-0.02, 1.02)},
        [PANELS["Time/"]],
    )
