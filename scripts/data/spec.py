# SPDX-License-Identifier: Apache-2.0
"""The description of a dataset and its cases by role, which are passed to every part of a run."""

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
"""`image`: a path, or a list with a path per channel; `label`: a path, missing if unlabelled; `case`: the name."""


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
    """Return a copy of a loaded item with its name under `case`.

    Cases from another program (MONAI Label) have no name. It is derived from the image file while the item still
    records it, because later transforms may drop that record. If the file is unknown, the item gets no name.
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
        validation_cases: number of labelled cases held out for validation; the last ones in the list are taken.
        corrected_labels: folder of label files, relative to `directory` or absolute. An unlabelled case with a file in
            it becomes a labelled case (docs/labelling.md). The folder need not exist; `None` for no folder.
        foreign_labels: folder, relative to `directory` or absolute, with label files that another program made for
            unlabelled cases. Self-training ignores the voxels where they contradict its pseudo-labels. `None` for no
            folder.
        in_channels: number of image channels.
        label_names: name of each class, background first.
        label_values: value of each class in label files, or a list of values that form one class; `None`: 0, 1, 2, ...
        regions: regions that evaluation reports instead of the classes; maps the name of a region to the names of its
            classes. `None` reports the classes.
        ignore_value: value of voxels in label files that are ignored; `None` if there is none.
        spacing: voxel size in mm to which volumes are resampled.
        intensity: normalisation, a transform of the key `image`; `None`: unknown.
        roi_size: size of a training patch in voxels.
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
        """Value of each class in label files that are written: the first one if it has several values.

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
        """Return the settings that a resumed run must share with the original run; folders and files may move."""
        left_out = {"directory", "datalist", "labelled_cases", "validation_cases", "corrected_labels", "intensity"}
        left_out |= {"regions", "foreign_labels"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
