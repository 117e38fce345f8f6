# SPDX-License-Identifier: Apache-2.0
"""The order of cases, worked out by hand."""

from __future__ import annotations

import torch

from scripts.labelling.prioritise import COLUMNS, Candidate, ranked_rows


def candidate(name: str, uncertainty: float, distance: float | None, place: float) -> Candidate:
    return Candidate(name, f"{name}.nii.gz", uncertainty, distance, torch.tensor([place]))


CASES = [candidate("a", 0.2, 0.1, 1.0), candidate("b", 0.9, 0.3, 4.0), candidate("c", 0.5, None, 9.0)]
KNOWN = torch.tensor([0.0])


def names(**options) -> list[str]:
    return [row[1] for row in ranked_rows(CASES, KNOWN, **options)]


def test_ranks_of_three_criteria_are_averaged() -> None:
    table = [dict(zip(COLUMNS, row, strict=True)) for row in ranked_rows(CASES, KNOWN)]
    # b: 1, 2, 2; c: 2, 1 (no structure found), 1; a: 3, 3, 3
    assert [row["case"] for row in table] == ["c", "b", "a"]
    assert [row["rank"] for row in table] == [1, 2, 3]
    assert [(row["rank_uncertainty"], row["rank_prototype_distance"], row["rank_diversity"]) for row in table] == [
        (2, 1, 1), (1, 2, 2), (3, 3, 3),
    ]  # fmt: skip
    assert [row["diversity"] for row in table] == ["9.0000", "4.0000", "1.0000"]
    assert table[0]["prototype_distance"] == ""


def test_one_criterion_alone_can_decide() -> None:
    assert names(order_by=["uncertainty"]) == ["b", "c", "a"]
    assert names(order_by=["prototype_distance"]) == ["c", "b", "a"]


def test_no_case_is_no_row() -> None:
    assert ranked_rows([], KNOWN) == []
