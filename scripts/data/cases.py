# SPDX-License-Identifier: Apache-2.0
"""The cases of a run, by role."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Case = dict[str, Any]
"""`image`: a path or a list with a path per channel; `label`: a path, absent if unlabelled; `case`: the name."""


ROLES = ("labelled", "unlabelled", "validation", "test")
"""The lists of `CaseLists`."""


@dataclass
class CaseLists:
    """The cases of a run by role. Unlabelled cases have no `label` entry, so that their label files are never read."""

    labelled: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    validation: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)


def cases_with_roles(lists: CaseLists, *roles: str) -> list[tuple[Case, str]]:
    """Return the cases of some roles, by default of all, each with its role."""
    return [(case, role) for role in roles or ROLES for case in getattr(lists, role)]


def images_of(case: Case) -> list[str]:
    """Return the files of the image: one, or one per channel."""
    return case["image"] if isinstance(case["image"], list) else [case["image"]]
