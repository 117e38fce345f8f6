# SPDX-License-Identifier: Apache-2.0
"""A case, and the cases of a run by what they are used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Case = dict[str, Any]
"""`image`: path or list of channel paths; `label`: path, absent for an unlabelled case; `case`: its name."""


ROLES = ("labelled", "unlabelled", "validation", "test")
"""The lists of `CaseLists`."""


@dataclass
class CaseLists:
    """The cases of a run by role. Unlabelled cases have no `label` entry: their label file cannot be opened."""

    labelled: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    validation: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)


def cases_with_roles(lists: CaseLists, *roles: str) -> list[tuple[Case, str]]:
    """The cases of some roles, by default of all, each with its role."""
    return [(case, role) for role in roles or ROLES for case in getattr(lists, role)]


def images_of(case: Case) -> list[str]:
    """The image's files: one, or one for each channel."""
    return case["image"] if isinstance(case["image"], list) else [case["image"]]
