# SPDX-License-Identifier: Apache-2.0
"""What only several cases together show: outliers of size and spacing, and the same image twice."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scripts.data.checks.finding import Finding, Kind
from scripts.images.header import VolumeHeader

SPLIT = {"labelled": "train", "unlabelled": "train", "validation": "validation", "test": "test"}
"""What must not share an image: to select or to test on what was trained on measures nothing."""


@dataclass(frozen=True)
class Content:
    """An image file and a digest of what is in it."""

    path: str
    case: str
    role: str
    digest: bytes


def duplicates(contents: Iterable[Content]) -> list[Finding]:
    """One finding for each case that repeats an earlier one, a worse one if the two are in different splits."""
    groups: dict[bytes, list[Content]] = defaultdict(list)
    findings = []
    told: set[tuple[str, str, str, str]] = set()
    for content in contents:
        earlier = groups[content.digest]
        others = [other for other in earlier if SPLIT[other.role] != SPLIT[content.role]] or earlier
        earlier.append(content)
        if len(earlier) == 1:
            continue
        first = others[0]
        pair = (first.role, first.case, content.role, content.case)
        same_file = os.path.normpath(first.path) == os.path.normpath(content.path)
        # Channels of a copied case tell the same; a file in two lists has a finding of its own (checks.lists).
        if pair in told or (same_file and first.role != content.role):
            continue
        told.add(pair)
        findings.append(_finding(first, content))
    return findings


def _finding(first: Content, content: Content) -> Finding:
    same = f"{content.path} ({content.role}) and {first.path} ({first.role}) hold the same image"
    if SPLIT[first.role] == SPLIT[content.role]:
        kind, sentence = Kind.DUPLICATE, f"{same}: take one out of the datalist, or it counts twice."
    else:
        kind, sentence = Kind.LEAK, f"{same}: take one out of the datalist, or what is measured on it means nothing."
    return Finding(kind, sentence, content.path, content.case, content.role)


FEWEST = 5  # cases; of fewer nobody can say what is usual
FACTOR = 2.0  # from the median; less than this is never unusual
SPREADS = 5.0  # robust standard deviations from the median; data that vary much have no outlier at twice the median


@dataclass(frozen=True)
class Member:
    """A case among the others.

    Attributes:
        case: its name.
        role: its list in `CaseLists`.
        header: of its first image file.
    """

    case: str
    role: str
    header: VolumeHeader

    def finding(self, kind: Kind, sentence: str) -> Finding:
        """One about this case."""
        return Finding(kind, sentence, self.header.path, self.case, self.role)


def unlike_the_rest(members: Sequence[Member]) -> list[Finding]:
    """Findings about spacing, size in mm and orientation, in the order of the cases."""
    if len(members) < FEWEST:
        return []
    ras = [replace(member, header=member.header.in_ras()) for member in members]
    return [*_spacing_and_size(ras), *_orientation(members)]


def far_from_median(values: np.ndarray) -> np.ndarray:
    """Which rows are further from the median than `FACTOR` and `SPREADS` times the usual deviation.

    Args:
        values: `(cases, axes)`, positive; judged by their logarithms, so that half is as far as twice.

    Returns:
        `(cases,)`, true where any axis is.
    """
    logs = np.log(values)
    deviations = np.abs(logs - np.median(logs, axis=0))
    spread = 1.4826 * np.median(deviations, axis=0)  # the standard deviation where deviations are normal
    return (deviations > np.maximum(np.log(FACTOR), SPREADS * spread)).any(axis=1)


def _spacing_and_size(members: Sequence[Member]) -> list[Finding]:
    spacings = np.array([member.header.spacing for member in members])
    sizes = spacings * [member.header.shape for member in members]
    wide = far_from_median(spacings)
    large = far_from_median(sizes) & ~wide  # a wrong spacing makes a wrong size: one finding is enough
    findings = []
    for index, member in enumerate(members):
        if wide[index]:
            sentence = (
                f"{member.header.path} has a spacing of {_mm(spacings[index])}, far from the median of "
                f"{_mm(np.median(spacings, axis=0))}: look whether its header is right."
            )
            findings.append(member.finding(Kind.SPACING, sentence))
        if large[index]:
            sentence = (
                f"{member.header.path} measures {_mm(sizes[index])}, far from the median of "
                f"{_mm(np.median(sizes, axis=0))}: look whether it shows the same part of the body."
            )
            findings.append(member.finding(Kind.SIZE, sentence))
    return findings


def _orientation(members: Sequence[Member]) -> list[Finding]:
    members = [member for member in members if member.header.oriented]  # the others have a finding of their own
    if not members:
        return []
    usual, count = Counter(member.header.axcodes for member in members).most_common(1)[0]
    if 2 * count <= len(members):
        return []
    return [
        member.finding(
            Kind.ORIENTATION,
            f"{member.header.path} is stored as {member.header.axcodes}, {count} of {len(members)} cases as {usual}: "
            "it is turned to RAS by what its header says.",
        )
        for member in members
        if member.header.axcodes != usual
    ]


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values) + " mm"
