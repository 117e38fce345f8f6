# SPDX-License-Identifier: Apache-2.0
"""The description of a dataset, and its cases by role, as every part of a run receives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.data.labels import LabelValues, declared_values, merged_values
from scripts.images.header import case_name

if TYPE_CHECKING:
    from monai.transforms import Transform


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


@dataclass(frozen=True)
class DatasetSpec:
    """The dataset block of a configuration (`configs/datasets/*.yaml`) as one object.

    Attributes:
        directory: folder that relative paths start from.
        datalist: file that lists the cases (docs/data.md), relative to `directory` or absolute.
        labelled_cases: number of training cases whose labels are used; the rest are unlabelled. `None`: every training
            case that has a label.
        validation_cases: number of labelled cases, the last ones, held out for validation.
        corrected_labels: folder, relative to `directory` or absolute, of label files that make unlabelled cases
            labelled ones (docs/labelling.md). It need not exist; `None`: there is none.
        foreign_labels: folder, relative to `directory` or absolute, of label files of unlabelled cases that another
            program made; self-training leaves out the voxels where they contradict its pseudo-labels. `None`: none.
        in_channels: channels of an image.
        label_names: name of each class, background first.
        label_values: value of each class in label files, or a list of values that are one class; `None`: 0, 1, 2, ...
        regions: what evaluation reports instead of the classes: name to names of the classes that it consists of.
            `None`: the classes.
        ignore_value: value of voxels in label files that are ignored; `None`: there is none.
        spacing: voxel size to which volumes are resampled, mm.
        intensity: normalisation, a transform of the key `image`; `None`: unknown.
        roi_size: training patch, voxels.
        name: name of the dataset.

    >>> DatasetSpec("scans", label_names=["background", "liver"]).num_classes
    2
    """

    directory: str | Path
    datalist: str = "dataset.json"
    labelled_cases: int | None = None
    validation_cases: int = 0
    corrected_labels: str | Path | None = None
    foreign_labels: str | Path | None = None
    in_channels: int = 1
    label_names: Sequence[str] = ("background", "foreground")
    label_values: LabelValues | None = None
    ignore_value: int | None = None
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    intensity: Transform | None = None
    roi_size: Sequence[int] = (64, 64, 64)
    name: str = ""
    regions: Mapping[str, Sequence[str]] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.label_names)

    @property
    def values(self) -> list[int]:
        """Value of each class in label files that are written; the first of those that it has in files to read.

        Raises:
            UserError: see `merged_values`.
        """
        return declared_values(self.num_classes, self.label_values, self.ignore_value)

    @property
    def all_values(self) -> list[list[int]]:
        """All values of each class in label files that are read.

        Raises:
            UserError: see `merged_values`.
        """
        return merged_values(self.num_classes, self.label_values, self.ignore_value)

    @property
    def corrected_labels_dir(self) -> Path | None:
        """Folder of corrected labels as a path; `None` if there is none."""
        return None if self.corrected_labels is None else Path(self.directory) / self.corrected_labels

    @property
    def foreign_labels_dir(self) -> Path | None:
        """Folder of other programs' labels as a path; `None` if there is none."""
        return None if self.foreign_labels is None else Path(self.directory) / self.foreign_labels

    def fixed_settings(self) -> dict[str, Any]:
        """What a resumed run must share with the run it continues; folders and files may move."""
        left_out = {"directory", "datalist", "labelled_cases", "validation_cases", "corrected_labels", "intensity"}
        left_out |= {"regions", "foreign_labels"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
