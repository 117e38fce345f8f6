# SPDX-License-Identifier: Apache-2.0
"""The cases of a run, by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.images.header import case_name

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


def with_name(item: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of a loaded item with its name, `case`.

    Cases from another program (MONAI Label) have only the file of their image, which transforms may forget. An item
    without a name whose file is unknown stays without one.
    """
    file = getattr(item.get("image"), "meta", {}).get("filename_or_obj")
    return dict(item) if "case" in item or file is None else {**item, "case": case_name(file)}


def images_of(case: Case) -> list[str]:
    """Return the files of the image: one, or one per channel."""
    return case["image"] if isinstance(case["image"], list) else [case["image"]]
