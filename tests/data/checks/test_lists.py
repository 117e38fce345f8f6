# SPDX-License-Identifier: Apache-2.0
"""Label files without a case are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.checks.cohort import labels_alone


@pytest.fixture
def touch(tmp_path):
    def make(*paths: str) -> list[str]:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return [str(tmp_path / path) for path in paths]

    return make


def alone(images, labels) -> list[str]:
    return [Path(finding.file).name for finding in labels_alone(images, labels)]


def test_in_a_folder_of_labels_every_other_image_file_is_reported(touch) -> None:
    images, labels = touch("images/a.nii"), touch("labels/a.nii")
    touch("labels/b.nii", "labels/notes.txt", "labels/.c.nii", "images/d.nii")
    assert alone(images, labels) == ["b.nii"]


def test_next_to_images_only_names_of_labels_are_reported(touch) -> None:
    images, labels = touch("a.nii"), touch("a_seg.nii")
    touch("b_seg.nii", "c.nii")
    assert alone(images, labels) == ["b_seg.nii"]


def test_a_path_written_another_way_is_the_same_file(touch, tmp_path) -> None:
    images = touch("images/a.nii")
    touch("labels/a.nii")
    assert alone(images, [f"{tmp_path}/images/../labels/./a.nii"]) == []


def test_missing_folders_have_no_findings(tmp_path) -> None:
    assert alone([f"{tmp_path}/i/a.nii"], [f"{tmp_path}/l/a.nii"]) == []
