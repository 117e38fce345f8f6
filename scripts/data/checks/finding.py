# SPDX-License-Identifier: Apache-2.0
"""The findings of the data checks: their kinds and severities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum


class Severity(StrEnum):
    """Severity of a finding, the worst first."""

    ERROR = "error"  # training would stop, or its results would be wrong
    WARNING = "warning"  # training works, but someone should look at the data
    NOTE = "note"  # handled automatically; nothing to do


class Kind(Enum):
    """The kinds of findings, each with a title and a severity. docs/dirty_data.md describes how each is handled."""

    SETTING = ("setting", Severity.ERROR)
    BAD_ENTRY = ("bad entry in datalist", Severity.ERROR)
    MISSING_IMAGE = ("missing image", Severity.ERROR)
    MISSING_LABEL = ("missing label", Severity.ERROR)
    TWO_LISTS = ("image in two lists", Severity.ERROR)
    UNREADABLE = ("unreadable file", Severity.ERROR)
    CHANNELS = ("number of channels", Severity.ERROR)
    SHAPE = ("shapes differ", Severity.ERROR)
    GRID = ("grids differ", Severity.ERROR)
    SEGMENTS = ("segment names", Severity.ERROR)
    UNDECLARED = ("undeclared label value", Severity.ERROR)
    MASK_OR_IGNORE = ("label value 255", Severity.ERROR)
    NOT_WHOLE = ("label not whole numbers", Severity.ERROR)
    ALL_IGNORED = ("label all ignored", Severity.ERROR)
    ABSENT_CLASS = ("class without a case", Severity.ERROR)
    NOT_FINITE = ("NaN or infinity", Severity.ERROR)
    CONSTANT = ("constant image", Severity.ERROR)
    LEAK = ("image in train and test", Severity.ERROR)
    LABEL_LEAK = ("label in train and test", Severity.WARNING)
    SAME_PATIENT = ("patient in train and test", Severity.WARNING)
    LABEL_LIKE = ("image looks like a label", Severity.WARNING)
    EXTREMES = ("few extreme voxels", Severity.WARNING)
    DUPLICATE = ("same image twice", Severity.WARNING)
    LABEL_TWICE = ("same label twice", Severity.WARNING)
    NEVER_TOGETHER = ("values never together", Severity.WARNING)
    EMPTY_LABEL = ("empty label", Severity.WARNING)
    CUT_LABEL = ("label of a part", Severity.WARNING)
    NO_ORIENTATION = ("no orientation", Severity.WARNING)
    SPACING = ("unusual spacing", Severity.WARNING)
    SIZE = ("unusual size", Severity.WARNING)
    TEST_WITHOUT_LABEL = ("test without label", Severity.WARNING)
    UNKNOWN_LIST = ("unknown list", Severity.WARNING)
    LABEL_ALONE = ("label without image", Severity.WARNING)
    ORIENTATION = ("orientation differs", Severity.NOTE)
    ROUNDED = ("label rounded", Severity.NOTE)
    SMALL = ("smaller than patch", Severity.NOTE)

    def __init__(self, title: str, severity: Severity) -> None:
        self.title = title
        self.severity = severity


@dataclass(frozen=True)
class Finding:
    """A problem of one case or of the whole dataset.

    Attributes:
        kind: kind of the problem.
        sentence: the file or key, the problem and, unless it is a note, what to do.
        file: the affected file; empty if there is not exactly one.
        case: name of the affected case; empty if there is not exactly one.
        role: list of the case in `CaseLists`: `labelled`, `unlabelled`, `validation` or `test`.
    """

    kind: Kind
    sentence: str
    file: str = ""
    case: str = ""
    role: str = ""

    @property
    def severity(self) -> Severity:
        """Severity of the finding's kind."""
        return self.kind.severity

    @property
    def is_error(self) -> bool:
        """Whether the severity is `ERROR`."""
        return self.severity is Severity.ERROR


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by kind, the worst first, and report each unreadable file only once."""
    kinds = list(Kind)
    unreadable: set[str] = set()
    kept = []
    for finding in findings:
        if finding.kind is Kind.UNREADABLE and finding.file in unreadable:
            continue
        if finding.kind is Kind.UNREADABLE:
            unreadable.add(finding.file)
        kept.append(finding)
    return sorted(kept, key=lambda finding: kinds.index(finding.kind))
