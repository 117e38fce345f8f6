# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI lacks."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTrait
from monai.utils import convert_to_dst_type

from scripts.data.checks.grid import cut_start, label_on_image, on_image_grid
from scripts.data.labels import to_classes, value_text
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError, first_line
from scripts.images.components import classes_to_reduce, keep_largest
from scripts.images.header import VolumeHeader
from scripts.prototypes.voxels import NO_CLASS


class LabelsToClassesd(MapTransform):
    """Convert the values of a label file to class indices, and raise an error for undeclared values.

    Without the error, an undeclared value would silently become a wrong target. Ignored voxels get the class `NO_CLASS`
    (-1), which all loss terms, the memory and the metrics ignore.

    Args:
        keys: label volumes with the values of their files.
        dataset: declares the values of the classes and of ignored voxels.
        allow_missing_keys: whether cases may lack these keys.

    Raises:
        UserError: if the declared values are invalid, see `scripts.data.labels.declared_values`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        dataset: DatasetSpec,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = dataset.all_values
        self.ignore_value = dataset.ignore_value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with class indices, int8 or int16, in place of values.

        Raises:
            UserError: for an undeclared value, or a file with ignored voxels only; the message names the file.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            name = getattr(data[key], "meta", {}).get("filename_or_obj", key)
            classes, undeclared = to_classes(_plain(data[key]), self.values, self.ignore_value)
            if undeclared is not None:
                declared = sorted(value for values in self.values for value in values)
                ignored = "" if self.ignore_value is None else f" and ignores {self.ignore_value}"
                raise UserError(
                    f"{name} holds the label value {value_text(undeclared)}, but the dataset's YAML declares "
                    f"{declared}{ignored}: name its class in label_names and label_values, set "
                    "ignore_value, or correct the file."
                )
            if self.ignore_value is not None and bool((classes == NO_CLASS).all()):
                raise UserError(
                    f"Every voxel of {name} has the ignore_value {self.ignore_value}: use the case without its label."
                )
            result[key] = convert_to_dst_type(classes, dst=data[key], dtype=classes.dtype)[0]
        return result


class LabelOnImaged(MapTransform):
    """Put a label on the grid of its image, with the image's order of axes and exactly the image's affine.

    The headers may differ by rounding, for example a spacing of 1.5 in one file and 1.503 in the other. `Spacingd`
    would then round image and label to different sizes. A label that was cropped to its painted part is placed at its
    offset.

    Args:
        keys: volumes of class indices `(1, X, Y, Z)`; voxels outside of a cropped label get class 0, background.
        image_key: the image, `(C, X, Y, Z)`.
        allow_missing_keys: whether cases may lack a label.
        only_cut: whether to leave labels that are not cropped unchanged, on any grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        allow_missing_keys: bool = False,
        only_cut: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.only_cut = image_key, only_cut

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with labels on the image's grid.

        Raises:
            UserError: if the label's grid is not that of the image, see `scripts.data.checks.grid.label_on_image`.
        """
        result = dict(data)
        for key in self.key_iterator(data):
            image, label = (_header_of(data[name], name) for name in (self.image_key, key))
            if self.only_cut and cut_start(image, label) is None:
                continue
            for finding in label_on_image(image, label):
                raise UserError(finding.sentence)
            voxels = on_image_grid(_plain(data[key])[0].cpu().numpy(), label, image)
            moved = convert_to_dst_type(np.ascontiguousarray(voxels[None]), dst=data[key], dtype=data[key].dtype)[0]
            moved.affine = data[self.image_key].affine
            result[key] = moved
        return result


def _header_of(volume: Any, key: str) -> VolumeHeader:
    path = str(volume.meta.get("filename_or_obj", key))
    return VolumeHeader(path, tuple(volume.shape[1:]), len(volume), volume.affine.numpy(), str(volume.dtype), True)


class IgnoredToBackgroundd(MapTransform):
    """Set ignored voxels of the reference to background, both in the reference and in the volumes compared with it.

    Then no structure has voxels there in either volume, and metrics do not count them.

    Args:
        keys: volumes of class indices `(1, D, H, W)` on the reference's grid, including the reference.
        reference_key: volume in which `NO_CLASS` marks voxels to ignore.
    """

    def __init__(self, keys: KeysCollection, reference_key: str = "label") -> None:
        super().__init__(keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with changed copies of the volumes; the same volumes if no voxel is ignored."""
        result = dict(data)
        ignored = _plain(data[self.reference_key]) == NO_CLASS
        if bool(ignored.any()):
            for key in self.key_iterator(data):
                kept = _plain(data[key]).masked_fill(ignored.to(data[key].device), 0)
                result[key] = convert_to_dst_type(kept, dst=data[key], dtype=kept.dtype)[0]
        return result


class KeepLargestd(MapTransform):
    """Turn all but the largest connected component of some structures into background.

    MONAI's `KeepLargestConnectedComponentd` needs scikit-image, and takes class indices instead of names.

    Args:
        keys: volumes of class indices `(1, D, H, W)`.
        structures: `true` for all, `false` for none, or names.
        label_names: names of the classes, background first.

    Raises:
        UserError: for a name that is not a structure.
    """

    def __init__(
        self, keys: KeysCollection, structures: bool | str | Sequence[str], label_names: Sequence[str]
    ) -> None:
        super().__init__(keys)
        self.classes = classes_to_reduce(structures, label_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with changed copies of the volumes; the same volumes if no structure is named."""
        result = dict(data)
        if self.classes:
            for key in self.key_iterator(data):
                classes = _plain(data[key])[0].to(torch.int16).cpu().numpy()
                keep_largest(classes, self.classes)
                result[key] = convert_to_dst_type(torch.from_numpy(classes)[None], dst=data[key])[0]
        return result


def _plain(volume: Any) -> torch.Tensor:
    return torch.as_tensor(volume).as_subclass(torch.Tensor)


class StoredLabels:
    """Folder of pseudo-labels, with a subfolder for each round of labelling.

    The transform that reads pseudo-labels and the handler that makes them share this object. Each round has separate
    files, so that a resumed run reads the files of its step, even if a later round had begun before it was killed.

    Args:
        directory: the folder; it need not exist.

    Attributes:
        round: the current round, counted from 1.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory, self.round = Path(directory), 1

    @property
    def folder(self) -> Path:
        """Folder of the current round, with a file `<case>.npz` for each case."""
        return self.directory / f"round_{self.round}"


class StoredLabelsd(RandomizableTrait, MapTransform):
    """Add the pseudo-label that `scripts.training.self_training.SelfTraining` stored for an unlabelled case.

    The pseudo-label is on the training grid. Items with a label stay unchanged. The class is a `RandomizableTrait`,
    because MONAI caches the result of the transforms before the first such trait, and the files do not exist yet when
    the cache is filled.

    Args:
        keys: keys of the result, `(1, D, H, W)`, class indices or `NO_CLASS`.
        stored: the pseudo-labels; `None` if no case has one.
    """

    def __init__(self, keys: KeysCollection, stored: StoredLabels | None = None) -> None:  # optional: MONAI drops None
        super().__init__(keys)
        self.stored = stored

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the pseudo-label from its file.

        Raises:
            UserError: see `read_pseudo_label`.
        """
        result = dict(data)
        if self.stored is not None and "label" not in data:
            content = read_pseudo_label(self.stored.folder / f"{data['case']}.npz")
            result[self.keys[0]] = torch.from_numpy(content["labels"])[None]
        return result


def read_pseudo_label(path: Path) -> dict[str, np.ndarray]:
    """Read the file of a stored pseudo-label.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with np.load(path) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(
            f"The pseudo-label {path} cannot be read ({first_line(error)}): restore it from a copy, or start again "
            "without --resume to make the pseudo-labels again."
        ) from error
