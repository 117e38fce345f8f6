# SPDX-License-Identifier: Apache-2.0
"""The description of a dataset that every part of a run receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.data.labels import LabelValues, declared_values, merged_values

if TYPE_CHECKING:
    from monai.transforms import Transform


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
