# SPDX-License-Identifier: Apache-2.0
"""Which unlabelled case a person should label next."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.data.cases import CaseLists
from scripts.data.corrected_labels import names_of
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.run import each_case, report_failures
from scripts.inference.segmenter import Segmenter
from scripts.labelling.embeddings import ClassEmbeddings
from scripts.labelling.pseudo_labels import require_unlabelled


def farthest_first(points: torch.Tensor, known: torch.Tensor) -> tuple[list[int], list[float]]:
    """Order points so that each is the farthest from those before it (Sener and Savarese, ICLR 2018).

    Args:
        points: `(N, D)`.
        known: `(M, D)`, M at least 1, where one need not go any more.

    Returns:
        Indices in the order of choice, and for each point its Euclidean distance to the nearest of `known` and of the
        points chosen before it. Of equally far points the first is taken.
    """
    nearest = torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    order: list[int] = []
    distances = [0.0] * len(points)
    left = torch.ones(len(points), dtype=torch.bool)
    while left.any():
        index = int(nearest.masked_fill(~left, -1.0).argmax())
        order.append(index)
        distances[index] = float(nearest[index])
        left[index] = False
        nearest = torch.minimum(nearest, (points - points[index]).norm(dim=1))
    return order, distances


logger = logging.getLogger("prioritise_unlabelled")

CRITERIA = ("uncertainty", "prototype_distance", "diversity")
COLUMNS = ("rank", "case", *CRITERIA, *(f"rank_{name}" for name in CRITERIA), "image")


@dataclass(frozen=True)
class Candidate:
    """An unlabelled case.

    Attributes:
        name: the case's.
        image: its first file.
        uncertainty: 1 less the confidence of `scripts.inference.segmenter`, in [0, 1].
        prototype_distance: in [0, 2]; `None` if no structure was found.
        descriptor: `(D,)`, where the case lies among others.
    """

    name: str
    image: str
    uncertainty: float
    prototype_distance: float | None
    descriptor: torch.Tensor


def prioritise_unlabelled(
    cases: CaseLists,
    segmenter: Segmenter,
    embeddings: ClassEmbeddings,
    output_dir: str | Path,
    order_by: str | Sequence[str] = CRITERIA,
) -> Path:
    """Look at every unlabelled case and write `output_dir/prioritise_unlabelled.csv`, the case to label next first.

    Args:
        cases: of the datalist.
        segmenter: what segments a case, with `embeddings` as its predictor.
        embeddings: gathers what a case looks like.
        output_dir: folder of the table.
        order_by: criteria whose ranks are averaged.

    Returns:
        The table's file, if no case failed.

    Raises:
        UserError: for no unlabelled case or an unknown criterion; at the end, naming the cases that failed.
    """
    order_by = [order_by] if isinstance(order_by, str) else list(order_by)
    if not order_by or not set(order_by) <= set(CRITERIA):
        raise UserError(f"order_by must be one or more of {', '.join(CRITERIA)}, got {order_by}.")
    require_unlabelled(cases)
    candidates: list[Candidate] = []

    def one(image: ImageFiles, name: str) -> None:
        embeddings.reset()
        confidence = segmenter(image).sums.confidence()
        candidates.append(
            Candidate(name, first_file(image), 1 - confidence, embeddings.prototype_distance(), embeddings.descriptor())
        )

    names = names_of(cases, cases.unlabelled)
    failures = each_case(
        [(case["image"], name) for case, name in zip(cases.unlabelled, names, strict=True)],
        one,
        "prioritise_unlabelled",
    )
    path = Path(output_dir) / "prioritise_unlabelled.csv"
    rows = ranked_rows(candidates, embeddings.known_descriptor(), order_by)
    write_text(path, csv_text(COLUMNS, rows))
    report_failures(failures, len(names), output_dir)
    logger.info(f"{len(rows)} cases in {path}; label next: {', '.join(str(row[1]) for row in rows[:5])}.")
    return path


def ranked_rows(
    candidates: Sequence[Candidate], known: torch.Tensor, order_by: Sequence[str] = CRITERIA
) -> list[tuple[object, ...]]:
    """Rows of `COLUMNS`, the case to label next first.

    Args:
        candidates: the cases. One in which no structure was found is the farthest from all prototypes.
        known: descriptor of the labelled cases.
        order_by: criteria whose ranks are averaged; a tie goes by name.
    """
    if not candidates:
        return []
    chosen, diversity = farthest_first(torch.stack([each.descriptor for each in candidates]), known[None])
    distances = [2.0 if each.prototype_distance is None else each.prototype_distance for each in candidates]
    ranks = {
        "uncertainty": _ranks([each.uncertainty for each in candidates]),
        "prototype_distance": _ranks(distances),
        "diversity": [chosen.index(index) + 1 for index in range(len(candidates))],
    }
    means = [sum(ranks[name][index] for name in order_by) / len(order_by) for index in range(len(candidates))]
    order = sorted(range(len(candidates)), key=lambda index: (means[index], candidates[index].name))
    rows = []
    for place, index in enumerate(order, start=1):
        each = candidates[index]
        distance = "" if each.prototype_distance is None else f"{each.prototype_distance:.4f}"
        values = (f"{each.uncertainty:.4f}", distance, f"{diversity[index]:.4f}")
        rows.append((place, each.name, *values, *(ranks[name][index] for name in CRITERIA), each.image))
    return rows


def _ranks(values: Sequence[float]) -> list[int]:
    """1 for the largest value; equal values share the better rank."""
    return [1 + sum(other > value for other in values) for value in values]
