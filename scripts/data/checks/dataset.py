# SPDX-License-Identifier: Apache-2.0
"""All cases of a dataset, one in memory at a time, and what only all of them together show."""

from __future__ import annotations

from collections.abc import Iterable

from scripts.data.cases import ROLES, Case, CaseLists
from scripts.data.checks.case import CheckedHeaders, Expected, check_headers, check_voxels
from scripts.data.checks.cohort import Member, duplicates, unlike_the_rest
from scripts.data.checks.finding import Finding
from scripts.data.checks.labels import Classes, absent_classes
from scripts.data.sizes import Progress


def cases_with_roles(lists: CaseLists, *roles: str) -> list[tuple[Case, str]]:
    """Cases of some roles, by default of all, each with its role."""
    return [(case, role) for role in roles or ROLES for case in getattr(lists, role)]


def check_all_headers(
    cases: Iterable[tuple[Case, str]], expected: Expected, progress: Progress
) -> list[CheckedHeaders]:
    """`check_headers` of each case: milliseconds a file."""
    return [check_headers(case, role, expected) for case, role in progress(cases, "reading headers")]


def check_dataset(lists: CaseLists, expected: Expected, classes: Classes, progress: Progress) -> list[Finding]:
    """Everything that can be said about the files of a datalist; label files of unlabelled cases are not opened.

    Args:
        lists: of `read_cases`; their files may be missing.
        expected: what images should be like.
        classes: what labels should hold.
        progress: see `Progress`.
    """
    cases = cases_with_roles(lists)
    headers = check_all_headers(cases, expected, progress)
    findings = [finding for checked in headers for finding in checked.findings]
    members = [
        Member(case["case"], role, checked.image)
        for (case, role), checked in zip(cases, headers, strict=True)
        if checked.image is not None
    ]
    findings += unlike_the_rest(members)
    contents, tallies = [], []
    for case, role in progress(cases, "reading voxels"):
        voxels = check_voxels(case, role, classes)
        findings += voxels.findings
        contents += voxels.contents
        tallies += [voxels.values] if role == "labelled" and voxels.values is not None else []
    findings += duplicates(contents)
    findings += absent_classes(tallies, classes) if tallies else []
    return findings
