# SPDX-License-Identifier: Apache-2.0
"""What a check can find, and how much each kind of it matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    ERROR = "error"  # training stops on it, or learns or reports something wrong
    WARNING = "warning"  # training goes on, and somebody should look
    NOTE = "note"  # taken care of


class Kind(Enum):
    """Every kind of finding, with its name and severity. docs/dirty_data.md says what the product does with each."""

    SETTING = ("setting", Severity.ERROR)
    BAD_ENTRY = ("bad entry in datalist", Severity.ERROR)
    MISSING_IMAGE = ("missing image", Severity.ERROR)
    MISSING_LABEL = ("missing label", Severity.ERROR)
    TWO_LISTS = ("image in two lists", Severity.ERROR)
    UNREADABLE = ("unreadable file", Severity.ERROR)
    CHANNELS = ("number of channels", Severity.ERROR)
    SHAPE = ("shapes differ", Severity.ERROR)
    GRID = ("grids differ", Severity.ERROR)
    UNDECLARED = ("undeclared label value", Severity.ERROR)
    MASK_OR_IGNORE = ("label value 255", Severity.ERROR)
    NOT_WHOLE = ("label not whole numbers", Severity.ERROR)
    ALL_IGNORED = ("label all ignored", Severity.ERROR)
    ABSENT_CLASS = ("class without a case", Severity.ERROR)
    NOT_FINITE = ("NaN or infinity", Severity.ERROR)
    CONSTANT = ("constant image", Severity.ERROR)
    LEAK = ("image in train and test", Severity.ERROR)
    DUPLICATE = ("same image twice", Severity.WARNING)
    EMPTY_LABEL = ("empty label", Severity.WARNING)
    NO_ORIENTATION = ("no orientation", Severity.WARNING)
    SPACING = ("unusual spacing", Severity.WARNING)
    SIZE = ("unusual size", Severity.WARNING)
    TEST_WITHOUT_LABEL = ("test without label", Severity.WARNING)
    LABEL_ALONE = ("label without image", Severity.WARNING)
    ORIENTATION = ("orientation differs", Severity.NOTE)
    ROUNDED = ("label rounded", Severity.NOTE)
    SMALL = ("smaller than patch", Severity.NOTE)

    def __init__(self, title: str, severity: Severity) -> None:
        self.title = title
        self.severity = severity


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one case, or with all of them.

    Attributes:
        kind: what.
        sentence: names file or key, what is wrong and, where somebody must act, what to do.
        file: the file it is about; empty if about no single one.
        case: its case; empty if about no single one.
        role: the case's list in `CaseLists`: `labelled`, `unlabelled`, `validation` or `test`.
    """

    kind: Kind
    sentence: str
    file: str = ""
    case: str = ""
    role: str = ""

    @property
    def severity(self) -> Severity:
        """That of its kind."""
        return self.kind.severity

    @property
    def is_error(self) -> bool:
        """Whether training would be harmed."""
        return self.severity is Severity.ERROR


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By kind, the worst first; a file that cannot be read is told once, however often it was tried."""
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
