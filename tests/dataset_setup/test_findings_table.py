# SPDX-License-Identifier: Apache-2.0
"""The table on the screen."""

from __future__ import annotations

from scripts.data.checks.finding import Finding, Kind, Severity, in_order
from scripts.dataset_setup.check_data import SHOWN, table_of


def test_columns_stand_below_each_other_and_sentences_are_wrapped() -> None:
    findings = [
        Finding(Kind.SHAPE, "The label /d/x/a.nii has four words more than fit.", case="a"),
        Finding(Kind.SMALL, "Short.", case="case_10"),
    ]
    assert table_of(findings, "/d/x/", width=70).split("\n") == [
        "",
        "severity  finding             case     what",
        "error     shapes differ       a        The label a.nii has four words more than",
        "                                       fit.",
        "note      smaller than patch  case_10  Short.",
        "",
    ]


def test_of_many_findings_of_a_kind_the_first_are_shown_and_the_others_counted() -> None:
    findings = [Finding(Kind.SMALL, f"Number {n}.", case=str(n)) for n in range(7)]
    table = table_of(findings, "/d", width=100)
    assert "Number 1." in table and "Number 2." not in table
    assert f"... and {7 - SHOWN[Severity.NOTE]} more" in table


def test_the_worst_come_first_and_a_file_is_unreadable_once() -> None:
    findings = [
        Finding(Kind.SMALL, "", "a"),
        Finding(Kind.UNREADABLE, "header", "b"),
        Finding(Kind.DUPLICATE, "", "c"),
        Finding(Kind.UNREADABLE, "voxels", "b"),
    ]
    assert [(f.kind, f.sentence) for f in in_order(findings)] == [
        (Kind.UNREADABLE, "header"),
        (Kind.DUPLICATE, ""),
        (Kind.SMALL, ""),
    ]


def test_kinds_are_declared_from_the_worst_to_the_least() -> None:
    order = list(Severity)
    ranks = [order.index(kind.severity) for kind in Kind]
    assert ranks == sorted(ranks)
    assert len({kind.title for kind in Kind}) == len(list(Kind))
