# SPDX-License-Identifier: Apache-2.0
"""What inference finds in a folder, and that no output takes another's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.data.find import OutputNames, find_images, output_names
from scripts.errors import UserError
from tests.volume_files import affine, dicom_slices, volume, write_dicom


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, **options: str) -> list[str]:
    return [os.path.relpath(path, root) for path in find_images(root, **options)]


def test_files_of_every_format_are_found_in_order_and_others_not(tmp_path):
    names = ["a.nii.gz", "b.NII", "c d.nrrd", "e.nhdr", "f.mha", "g.MHD", "ü.nii.gz"]
    touch(tmp_path, *names, "e.raw", "notes.txt", "dataset.json", ".hidden.nii.gz", "._a.nii.gz")
    assert found(tmp_path) == sorted(names)


def test_images_in_the_folder_of_each_case_are_found(tmp_path):
    touch(tmp_path, "case_2/imaging.nii.gz", "case_1/imaging.nii.gz", "case_1/deep/x.mha", ".cache/x.nii.gz")
    assert found(tmp_path) == ["case_1/deep/x.mha", "case_1/imaging.nii.gz", "case_2/imaging.nii.gz"]


def test_a_pattern_leaves_labels_out_that_lie_beside_the_images(tmp_path):
    touch(tmp_path, "case_1/imaging.nii.gz", "case_1/segmentation.nii.gz", "case_2/imaging.nii.gz")
    assert found(tmp_path, pattern="imaging.*") == ["case_1/imaging.nii.gz", "case_2/imaging.nii.gz"]


def test_a_folder_of_slices_is_one_image_whatever_its_slices_are_called(tmp_path):
    slices = dicom_slices(volume(), affine())
    write_dicom(tmp_path / "scans/one", slices)
    for each in slices:
        each.name = each.name.removesuffix(".dcm")
    write_dicom(tmp_path / "scans/two", slices)
    touch(tmp_path / "scans", "three.nrrd", "four/notes.txt")
    assert found(tmp_path / "scans") == ["one", "three.nrrd", "two"]
    assert find_images(tmp_path / "scans/one") == [str(tmp_path / "scans/one")]
    assert find_images(f"{tmp_path}/scans/one#1.2.3") == [f"{tmp_path}/scans/one#1.2.3"]


def test_a_single_file_is_taken_whatever_the_pattern(tmp_path):
    touch(tmp_path, "a.nii.gz")
    assert find_images(tmp_path / "a.nii.gz", pattern="b*") == [str(tmp_path / "a.nii.gz")]


def test_links_are_followed_and_a_ring_of_them_ends(tmp_path):
    touch(tmp_path, "elsewhere/a.nii.gz", "scans/b.nii.gz")
    (tmp_path / "scans/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/ring").symlink_to(tmp_path / "scans")
    assert found(tmp_path / "scans") == ["b.nii.gz", "link/a.nii.gz"]


def test_an_empty_folder_gives_nothing_and_a_missing_one_is_refused(tmp_path):
    assert find_images(tmp_path) == []
    with pytest.raises(UserError, match=r"nowhere does not exist.*--dataset_dir"):
        find_images(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["d/a.nii.gz", "d/b.v2.nrrd", "d/series"], ["a", "b.v2", "series"]),
        (["d/c1/imaging.nii.gz", "d/c2/imaging.nii.gz"], ["c1_imaging", "c2_imaging"]),
        (["d/c1/imaging.nii.gz", "d/c2/imaging.nii.gz", "d/x.mha"], ["c1_imaging", "c2_imaging", "x"]),
        (["d/a.nii.gz", "d/a.nrrd", "d/A.nii.gz"], ["a.nii.gz", "a.nrrd", "A"]),
        (["d/a/b.nii", "d/a_b.nii", "d/c/b.nii"], ["a_b.nii", "a_b.nii_2", "c_b"]),
        (["d/1.2.840.1", "d/1.2.840.2"], ["1.2.840.1", "1.2.840.2"]),
        (["d/s#1.2", "d/s#1.3"], ["s#1.2", "s#1.3"]),
        (["d/c1/imaging.nii.gz"], ["imaging"]),
        ([], []),
    ],
)
def test_names_are_short_and_distinct(files, names):
    assert output_names(files) == names


def test_an_output_goes_where_its_input_s_name_says(tmp_path):
    files = ["/d/c1/imaging.nii.gz", "/d/c2/imaging.nii.gz"]
    names = OutputNames(files, tmp_path / "out/deep")
    assert names.filename(subject=files[1], idx=None) == str(tmp_path / "out/deep/c2_imaging_seg.nii.gz")
    assert (tmp_path / "out/deep").is_dir()
    with pytest.raises(KeyError):
        names.filename(subject="/d/c3/imaging.nii.gz")


@pytest.mark.parametrize("target", ["moved_away.nii.gz", "a.nii.gz"])
def test_a_link_to_nothing_or_to_itself_is_told_instead_of_being_left_out(tmp_path, target):
    (tmp_path / "a.nii.gz").symlink_to(target)
    with pytest.raises(UserError, match=r"a\.nii\.gz is a link that leads to no file"):
        find_images(tmp_path)
