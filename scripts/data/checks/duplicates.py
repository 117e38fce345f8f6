# SPDX-License-Identifier: Apache-2.0
"""The same image twice, by content."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.data.checks.finding import Finding, Kind

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
