# SPDX-License-Identifier: Apache-2.0
"""What counts as an image in a folder."""

from __future__ import annotations

from pathlib import Path

from scripts.data.find import find_volumes


def touch(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_image_files_of_each_format_count_and_others_do_not(tmp_path: Path) -> None:
    images = ["a.nii.gz", "b.NII", "sub/c.nrrd", "sub/d.mhd", "e.MHA"]
    touch(tmp_path, *images, "notes.txt", "sub/d.raw", "a.json")
    assert find_volumes(tmp_path) == sorted(images)


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/._h_001.nii.gz", "imagesTr/h_001.nii.gz", ".trash/x.nii.gz")
    assert find_volumes(tmp_path) == ["imagesTr/h_001.nii.gz"]


def test_a_folder_of_dicom_files_is_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "p1/CT/1.DCM", "p1/CT/2.DCM", "p1/segmentation.nii")
    touch(tmp_path, "p2/MR/IM0001", "p2/MR/IM0002", content=bytes(128) + b"DICM...")
    touch(tmp_path, "p3/notes/readme", content=b"short")
    touch(tmp_path, "p4/CONTENTS", "p4/slice.dcm", "p4/seg.nii")
    (tmp_path / "p3" / "gone").symlink_to(tmp_path / "nowhere")
    assert find_volumes(tmp_path) == ["p1/CT", "p1/segmentation.nii", "p2/MR", "p4", "p4/seg.nii"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.nii", "data/b.nii")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    assert find_volumes(tmp_path / "data") == ["b.nii", "more/a.nii"]
