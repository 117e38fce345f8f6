# SPDX-License-Identifier: Apache-2.0
"""Write the cases of a dataset, including pseudo-labels, in the format of nnU-Net."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import torch

from scripts.data.checks.grid import label_on_image, on_image_grid
from scripts.data.labels import to_classes, value_text
from scripts.data.spec import Case, CaseLists, DatasetSpec, images_of
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.find import output_names
from scripts.images.header import VolumeHeader
from scripts.images.read import read_header, read_volume
from scripts.images.write import write_volume
from scripts.progress import progress_bar
from scripts.prototypes.voxels import NO_CLASS

logger = logging.getLogger("pseudo_label")

LABELS = "labelsTr"
"""Folder of the labels in an nnU-Net dataset."""


def check_nnunet_folder(folder: str | Path) -> None:
    """Check that a folder has a name that nnU-Net recognises, and does not hold a dataset yet.

    Raises:
        UserError: if the name is not recognised, or the folder holds a dataset.
    """
    folder = Path(folder)
    if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
        raise UserError(
            f"nnU-Net finds datasets by names such as Dataset123_liver, not {folder.name}: give such a folder in "
            "nnUNet_raw with --pseudo_label_dir."
        )
    if (folder / "dataset.json").exists():
        raise UserError(f"{folder} holds a dataset already: give another folder with --pseudo_label_dir, or remove it.")


def write_nnunet_dataset(cases: CaseLists, dataset: DatasetSpec, folder: str | Path) -> None:
    """Turn a folder whose `labelsTr` holds the pseudo-labels into an nnU-Net dataset.

    Training cases are the labelled and validation cases with their labels, and the unlabelled ones with their
    pseudo-labels; the images of test cases are in `imagesTs`. Each image is written as a NIfTI file per channel, on its
    own grid. Each label is written as a NIfTI file of class indices on the grid of its image. `dataset.json` is written
    last.

    Args:
        cases: cases of the datalist.
        dataset: declares the classes and the values of the label files.
        folder: see `check_nnunet_folder`; it must have `labelsTr/NAME.nii.gz` for each unlabelled case.

    Raises:
        UserError: if a file cannot be read or written, or a label holds an undeclared value or is not on its image's
            grid.
    """
    root = Path(folder)
    with_labels, unlabelled = cases.labelled + cases.validation, cases.unlabelled
    for case in progress_bar([*with_labels, *unlabelled], "nnU-Net"):
        name = case["case"]
        grid = _write_images(case, root / "imagesTr", name)
        if "label" in case:
            write_volume(root / LABELS / f"{name}.nii.gz", _label(case["label"], grid, dataset), grid.affine, grid.path)
    test_names = output_names([images_of(case)[0] for case in cases.test])
    for case, name in zip(cases.test, test_names, strict=True):
        _write_images(case, root / "imagesTs", name)
    labels = {name: index for index, name in enumerate(dataset.label_names)}
    content = {
        "name": dataset.name,
        "channel_names": {str(number): name for number, name in enumerate(_channel_names(dataset))},
        "labels": labels if dataset.ignore_value is None else labels | {"ignore": dataset.num_classes},
        "numTraining": len(with_labels) + len(unlabelled),
        "file_ending": ".nii.gz",
        "pseudo_labels": sorted(case["case"] for case in unlabelled),
    }
    write_text(root / "dataset.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    logger.info(
        f"{root} holds {len(with_labels)} labelled and {len(unlabelled)} pseudo-labelled training cases, and "
        f"{len(cases.test)} test images, for nnU-Net."
    )


def _write_images(case: Case, folder: Path, name: str) -> VolumeHeader:
    """Write a file per channel, all on the grid of the image's first file; return the header of that file."""
    files = images_of(case)
    grid, number = read_header(files[0]), 0
    for file in files:
        for channel in read_volume(file)[1]:
            write_volume(folder / f"{name}_{number:04d}.nii.gz", _storable(channel), grid.affine, files[0])
            number += 1
    return grid


def _storable(voxels: np.ndarray) -> np.ndarray:
    """Convert voxels to a type that NIfTI readers support."""
    return voxels.astype(np.float32) if voxels.dtype in (np.float16, np.int64, np.uint64) else voxels


def _label(path: str, image: VolumeHeader, dataset: DatasetSpec) -> np.ndarray:
    """Read class indices `(X, Y, Z)`, uint8 or int16, of a label file on the grid of its image."""
    header, voxels = read_volume(path)
    for finding in label_on_image(image, header):
        raise UserError(finding.sentence)
    values = torch.from_numpy(voxels[0].astype(np.float64, order="C"))
    classes, undeclared = to_classes(values, dataset.all_values, dataset.ignore_value)
    if undeclared is not None:
        raise UserError(f"{path} holds the label value {value_text(undeclared)}: declare or correct it.")
    indices = classes.to(torch.int16).numpy()
    indices[indices == NO_CLASS] = dataset.num_classes  # nnU-Net's ignore label must be the highest value
    placed = on_image_grid(indices, header, image)
    return placed.astype(np.uint8) if dataset.num_classes < 256 else placed


def _channel_names(dataset: DatasetSpec) -> list[str]:
    """Name the channels. nnU-Net normalises a channel called `CT` by the whole dataset, and others by each image."""
    if "ScaleIntensityRange" in type(dataset.intensity).__name__:
        return ["CT"] * dataset.in_channels
    return [f"MRI {number}" for number in range(1, dataset.in_channels + 1)]
