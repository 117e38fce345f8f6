# SPDX-License-Identifier: Apache-2.0
"""Findings as a table to read on a screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby

from scripts.data.checks.finding import Finding, Severity

SHOWN = {Severity.ERROR: 10, Severity.WARNING: 5, Severity.NOTE: 2}  # findings of a kind; the CSV has all
NARROWEST = 40  # characters of the last column, however small the screen


def table_of(findings: Sequence[Finding], folder: str, width: int | None = None) -> str:
    """Lines to print.

    Args:
        findings: in the order to show them in, those of a kind together.
        folder: the dataset's, which is left out of paths.
        width: characters of a line; by default those of the terminal.
    """
    if not findings:
        return "Nothing is wrong."
    rows = [("severity", "finding", "case", "what")]
    for _, group in groupby(findings, key=lambda finding: finding.kind):
        same = list(group)
        shown = SHOWN[same[0].severity]
        rows += [_row(finding, folder) for finding in same[:shown]]
        if len(same) > shown:
            rows.append(("", "", "", f"... and {len(same) - shown} more"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    left = sum(widths) + 2 * len(widths)
    width = width or shutil.get_terminal_size((120, 24)).columns
    lines = []
    for row in rows:
        start = "  ".join(f"{text:<{size}}" for text, size in zip(row[:3], widths, strict=True)) + "  "
        wrapped = textwrap.wrap(row[3], max(NARROWEST, width - left), break_long_words=False, break_on_hyphens=False)
        lines += [(start if number == 0 else " " * left) + text for number, text in enumerate(wrapped)]
    return "\n".join(["", *lines, ""])


def _row(finding: Finding, folder: str) -> tuple[str, str, str, str]:
    sentence = finding.sentence.replace(folder.rstrip("/") + "/", "")
    return finding.severity, finding.kind.title, finding.case, sentence
