# SPDX-License-Identifier: Apache-2.0
"""docs/dirty_data.md has every kind of finding with its severity."""

from __future__ import annotations

from pathlib import Path

from scripts.data.checks.finding import Kind

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "dirty_data.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_table_has_every_kind_with_its_severity() -> None:
    written = sorted((title, severity) for title, severity, *_ in rows())
    assert written == sorted((kind.title, str(kind.severity)) for kind in Kind)
