# SPDX-License-Identifier: Apache-2.0
"""A case, and the cases of a run by what they are used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.images.read import ending_of

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


def images_of(case: Case) -> list[str]:
    """The image's files: one, or one for each channel."""
    return case["image"] if isinstance(case["image"], list) else [case["image"]]


def case_name(path: str | Path) -> str:
    """File name without an image's ending: `a.b/la_000.nii.gz` to `la_000`; the name of a DICOM folder as it is."""
    return Path(path).name[: -len(ending_of(path) or "") or None]
