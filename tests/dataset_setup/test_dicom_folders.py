# SPDX-License-Identifier: Apache-2.0
"""A folder as it comes from an archive: new_dataset, check_data and inference see the same images in it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts.data.checks.finding import Finding
from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec, images_of
from scripts.dataset_setup.check_data import check_data
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.plan import Machine
from scripts.dataset_setup.roles import Request
from scripts.images import dicom_slices as slices_module
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
MACHINE = Machine("cpu", 2**33)


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


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the header of each slice is parsed."""
    counts: Counter[str] = Counter()
    image_io = slices_module.image_io
    monkeypatch.setattr(slices_module, "image_io", lambda path: counts.update([path]) or image_io(path))
    return counts


def make_dataset(archive: Path, config: Path) -> None:
    new_dataset(Request(archive, "archive", config=config, test_cases=0), MACHINE, lambda text: None)


def check(archive: Path, output: Path) -> tuple[str, list[Finding]]:
    """What is shown, and the findings."""
    shown: list[str] = []
    spec = DatasetSpec(archive, label_names=["background", "structure"], spacing=[1.5, 2.0, 2.5], roi_size=[16, 16, 16])
    findings = check_data(spec, output, shown.append)
    return "\n".join(shown), findings


def test_every_command_sees_the_same_series(archive: Path, tmp_path: Path) -> None:
    expected = [str(archive / f"patient_{number}/scan") for number in range(4)]
    assert find_images(archive, "scan") == expected
    make_dataset(archive, tmp_path / "archive.yaml")
    cases = load_cases(DatasetSpec(archive))
    listed = [images_of(case)[0] for case in cases.labelled + cases.unlabelled]
    assert sorted(map(os.path.normpath, listed)) == expected
    shown, findings = check(archive, tmp_path / "out")
    assert findings == []
    assert "4 images" in shown


def test_the_header_of_each_slice_is_parsed_once_per_command(
    archive: Path, tmp_path: Path, parsed: Counter[str]
) -> None:
    make_dataset(archive, tmp_path / "archive.yaml")
    assert len(parsed) == 4 * SHAPE[2]
    assert set(parsed.values()) == {1}
    parsed.clear()
    check(archive, tmp_path / "out")
    assert len(parsed) == 4 * SHAPE[2]
    assert set(parsed.values()) == {1}
