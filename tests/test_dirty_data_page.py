# SPDX-License-Identifier: Apache-2.0
"""docs/dirty_data.md has every kind of finding with its severity, and the tests that it names are there."""

from __future__ import annotations

import re
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


def test_every_row_names_a_test_of_check_data_that_asks_for_this_kind() -> None:
    source = (TESTS / "workflows/test_check_data.py").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"^def (test_\w+)\((.*?)(?=^def |^@|^# ---|\Z)", source, re.MULTILINE | re.DOTALL))
    for title, _, _, _, cell in rows():
        named = re.findall(r"`(test_\w+)`", cell)
        assert named, title
        for name in named:
            assert f'"{title}"' in bodies[name] or "== set()" in bodies[name], f"{name} does not ask for {title}"


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    source = (TESTS / "workflows/test_check_data.py").read_text(encoding="utf-8")
    assert named <= set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
