# SPDX-License-Identifier: Apache-2.0
"""A folder as it comes from an archive: new_dataset, check_data and inference see the same images in it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from scripts.data.cases import images_of
from scripts.data.datalist import load_cases
from scripts.dataset_setup.check_data import check_data
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.plan import Machine
from scripts.dataset_setup.roles import Request
from scripts.images.find import find_images
from tests.volume_files import (
    affine,
    dicom_slices,
    save,
    stored_as,
    volume,
    write_bare_dicom,
    write_dicom,
    write_other_dicom,
)

SHAPE = (18, 17, 16)
MACHINE = Machine(memory=2**33, step_memory=2**33, gpu=False)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two labelled and two unlabelled patients; a DICOMDIR and RT structures at the top and beside the slices."""
    root = write_other_dicom(tmp_path / "archive")
    label = np.zeros(SHAPE, np.uint8)
    label[4:9, 5:12, 6:9] = 1
    for number in range(4):
        slices = dicom_slices(*stored_as(volume(SHAPE) + np.int16(number), affine(), "LPS"))
        folder = root / f"patient_{number}" / "scan"
        if number % 2:
            write_bare_dicom(folder, slices, ".IMA")
        else:
            write_dicom(write_other_dicom(folder), slices)
        if number < 2:
            save(root / f"patient_{number}" / "segmentation.nii.gz", *stored_as(label, affine(), "LPS"))
    return root


def test_every_command_sees_the_same_series(archive: Path, tmp_path: Path) -> None:
    expected = [str(archive / f"patient_{number}/scan") for number in range(4)]
    assert find_images(archive, "scan") == expected
    config = tmp_path / "archive.yaml"
    new_dataset(Request(archive, "archive", config=config, test_cases=0), MACHINE, lambda text: None)
    cases = load_cases(archive)
    listed = [images_of(case)[0] for case in cases.labelled + cases.unlabelled]
    assert sorted(map(os.path.normpath, listed)) == expected
    shown: list[str] = []
    findings = check_data(
        archive, "dataset.json", None, 0, 1, ["background", "structure"], [1.5, 2.0, 2.5], [16, 16, 16],
        tmp_path / "out", show=shown.append,
    )  # fmt: skip
    assert findings == []
    assert "4 images" in shown[0]
