# SPDX-License-Identifier: Apache-2.0
"""Warnings in the report about results that need care."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.data.checks.case import content_digest
from scripts.errors import UserError
from scripts.evaluation.statistics import MIN_CASES
from scripts.images.read import open_volume, read_header
from scripts.report.cases import ReportCase, StructureMeasures

SPACING_TOLERANCE = 0.02
"""A voxel size counts as outside the training range if it is outside by more than this fraction."""

NAMED = 5
"""Maximum number of cases that a sentence names."""


def compare_with_training(training: Sequence[str], cases: Sequence[ReportCase]) -> dict[str, Any]:
    """Compare the test images with the training images.

    Args:
        training: labelled and unlabelled training images. Missing files are skipped, because an evaluation needs only
            the test cases.
        cases: test cases.

    Returns:
        `spacing_mm`, the smallest and largest voxel size in training along R, A and S; and `seen`, pairs of a test case
        and the training file that has the same intensities on the same grid, whatever its name and format.
    """
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    spacings = []
    for path in training:
        try:
            header = read_header(path).in_ras()
        except UserError:
            continue
        by_shape[header.shape].append(path)
        spacings.append(header.spacing)
    seen = []
    for case in cases:
        # Only files with the same shape are read completely.
        alike = [] if case.image is None else by_shape.get(read_header(case.image).in_ras().shape, [])
        if alike and case.image is not None:
            wanted = _digest(case.image)
            seen += [(case.name, path) for path in alike if _digest(path) == wanted]
    ranges = [(min(values), max(values)) for values in zip(*spacings, strict=True)]
    return {"spacing_mm": ranges, "seen": seen}


def _digest(path: str) -> bytes:
    volume = open_volume(path)
    return content_digest(volume.header, volume.voxels())


def advice(
    summary: Mapping[str, Any] | None,
    cases: Sequence[ReportCase],
    measured: Mapping[str, Mapping[str, StructureMeasures]],
    training: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Yield warnings of one or two sentences.

    Args:
        summary: content of `summary.json`, or `None`.
        cases: the cases.
        measured: measurements of each case and structure.
        training: result of `compare_with_training`, or `None` if it is not known.
    """
    failed = [case.name for case in cases if case.prediction is None and case.problem and not case.rows]
    yield from _about_cases(failed, f"{len(failed)} of {len(cases)} cases failed and have no result")
    if training is not None:
        for name, path in training["seen"]:
            yield f"{name} was seen in training, as {path}: its result says nothing about further scans."
    if summary is not None:
        few = [name for name, entry in summary["per_class"].items() if 0 < entry["num_cases"] < MIN_CASES]
        if few:
            yield (
                f"Fewer than {MIN_CASES} cases count for {_listed(few)}: no interval can be given, and the mean may be "
                "far from that of further cases."
            )
    rows: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for row in case.rows:
            rows[row["class"]].append(row["status"])
    for name, statuses in rows.items():
        without = sum(status in ("absent", "false_positive") for status in statuses)
        if 2 * without >= len(statuses):
            yield (
                f"{name} is absent from the reference of {without} of {len(statuses)} cases: its means come from the "
                "others, and from cases in which it is a false positive."
            )
    yield from _about_cases(
        [case.name for case in cases if case.alarms], "Unlike the cases of training, see their alarms"
    )
    yield from _about_cases(
        [f"{c} ({s})" for c, each in measured.items() for s, m in each.items() if m.at_border],
        "The prediction reaches the border of the volume, where it may be cut off, and the reference does not",
    )
    yield from _about_cases(
        [f"{c} ({s}: {m.large_components})" for c, each in measured.items() for s, m in each.items()
         if m.large_components > 1],
        "The prediction has several large parts. If the structure is one piece, keeping the largest part may help "
        "(option --largest_component true)",
    )  # fmt: skip
    if training is not None and training["spacing_mm"]:
        yield from _about_cases(
            list(_unusual_spacing(cases, training["spacing_mm"])),
            "The voxel size lies outside the range of training",
        )


def _unusual_spacing(cases: Sequence[ReportCase], ranges: Sequence[Sequence[float]]) -> Iterator[str]:
    for case in cases:
        try:
            spacing = () if case.image is None else read_header(case.image).in_ras().spacing
        except UserError:  # the page reports this error next to the case
            continue
        outside = [
            f"{size:.3g} mm instead of {low:.3g}{'' if f'{low:.3g}' == f'{high:.3g}' else f' to {high:.3g}'}"
            for size, (low, high) in zip(spacing, ranges, strict=bool(spacing))
            if not low * (1 - SPACING_TOLERANCE) <= size <= high * (1 + SPACING_TOLERANCE)
        ]
        if outside:
            yield f"{case.name} ({', '.join(dict.fromkeys(outside))})"


def _about_cases(names: Sequence[str], what: str) -> Iterator[str]:
    if names:
        yield f"{what}: {_listed(names)}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
