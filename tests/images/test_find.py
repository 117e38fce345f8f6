# SPDX-License-Identifier: Apache-2.0
"""Finding the images in a folder, and distinct names for their outputs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import UserError
from scripts.images.find import find_images, grouped_channels, listed_images, output_names, passed_over, walk_images
from scripts.images.header import case_name
from scripts.images.read import read_volume
from tests.volume_files import affine, dicom_slices, touch, volume, write_bare_dicom, write_dicom, write_other_dicom


def found(root: Path, **options: str) -> list[str]:
    return [os.path.relpath(path, root) for path in find_images(root, **options)]


def test_files_of_every_format_are_found_in_order_and_others_not(tmp_path):
    names = ["a.nii.gz", "b.NII", "c d.nrrd", "e.nhdr", "f.mha", "g.MHD", "ü.nii.gz"]
    touch(tmp_path, *names, "e.raw", "notes.txt", "dataset.json", ".hidden.nii.gz", "._a.nii.gz")
    assert found(tmp_path) == sorted(names)


def test_images_in_the_folder_of_each_case_are_found(tmp_path):
    touch(tmp_path, "case_2/imaging.nii.gz", "case_1/imaging.nii.gz", "case_1/deep/x.mha", ".cache/x.nii.gz")
    assert found(tmp_path) == ["case_1/deep/x.mha", "case_1/imaging.nii.gz", "case_2/imaging.nii.gz"]


def test_a_pattern_excludes_labels_next_to_the_images(tmp_path):
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


def test_a_folder_of_dicom_files_is_one_image(tmp_path):
    touch(tmp_path, "p1/CT/1.DCM", "p1/CT/2.DCM", "p1/segmentation.nii")
    touch(tmp_path, "p2/MR/IM0001", "p2/MR/IM0002", content=bytes(128) + b"DICM...")
    touch(tmp_path, "p3/notes/readme", content=b"short")
    touch(tmp_path, "p4/CONTENTS", "p4/slice.dcm", "p4/seg.nii")
    (tmp_path / "p3/gone").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == ["p1/CT", "p1/segmentation.nii", "p2/MR", "p4", "p4/seg.nii"]


def test_dicom_files_that_are_not_slices_are_not_images(tmp_path):
    write_other_dicom(tmp_path)
    write_dicom(tmp_path / "scan", dicom_slices(volume(), affine()))
    assert found(tmp_path) == ["scan"]


def test_slices_without_a_preamble_are_found_with_and_without_an_ending(tmp_path):
    write_bare_dicom(tmp_path / "a", dicom_slices(volume(), affine()), ".IMA")
    write_bare_dicom(tmp_path / "b", dicom_slices(volume(), affine()), "")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/voxels.raw").write_bytes(b"\b\0\0\0" * 300)  # begins as a bare slice does
    assert found(tmp_path) == ["a", "b"]
    for folder in ("a", "b"):
        np.testing.assert_array_equal(read_volume(tmp_path / folder)[1][0], volume())


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.nii", "closed/b.nii")
    iterdir = Path.iterdir

    def deny(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(UserError, match="closed"):
        find_images(tmp_path)


def test_a_single_file_is_taken_whatever_the_pattern(tmp_path):
    touch(tmp_path, "a.nii.gz")
    assert find_images(tmp_path / "a.nii.gz", pattern="b*") == [str(tmp_path / "a.nii.gz")]


def test_links_are_followed_and_cycles_of_links_end(tmp_path):
    touch(tmp_path, "elsewhere/a.nii.gz", "scans/b.nii.gz")
    (tmp_path / "scans/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/ring").symlink_to(tmp_path / "scans")
    assert found(tmp_path / "scans") == ["b.nii.gz", "link/a.nii.gz"]


@pytest.mark.parametrize("ending", [".txt", ".json"])
def test_backslashes_in_a_list_separate_folders_unless_a_file_has_them_in_its_name(tmp_path, ending):
    touch(tmp_path, "in/a.nii.gz", "in/b.nii.gz", "c\\d.nii.gz", "scan/1.dcm")
    names = [r"in\a.nii.gz", r".\in\b.nii.gz", r"c\d.nii.gz", r"in\..\scan#1.2.3"]
    file = tmp_path / f"list{ending}"
    file.write_text("\n".join(names) if ending == ".txt" else json.dumps([*names[:2], names[2:]]))
    expected = ["in/a.nii.gz", "in/b.nii.gz", "c\\d.nii.gz", "in/../scan#1.2.3"]
    paths = [str(tmp_path / name) for name in expected]
    assert find_images(file) == (paths if ending == ".txt" else [*paths[:2], paths[2:]])


def test_an_empty_folder_gives_nothing_and_a_missing_one_is_refused(tmp_path):
    assert find_images(tmp_path) == []
    with pytest.raises(UserError, match=r"nowhere.*--dataset_dir"):
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


@pytest.mark.parametrize("target", ["moved_away.nii.gz", "a.nii.gz"])
def test_a_broken_link_is_an_error(tmp_path, target):
    (tmp_path / "a.nii.gz").symlink_to(target)
    with pytest.raises(UserError, match=r"a\.nii\.gz"):
        find_images(tmp_path)


def test_links_to_images_are_followed(tmp_path):
    touch(tmp_path / "store", "5e2f", "77b1.img", "77b1.hdr")
    (tmp_path / "data").mkdir()
    for name, target in (("a.nii.gz", "5e2f"), ("b.img", "77b1.img"), ("b.hdr", "77b1.hdr")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / target)
    assert find_images(tmp_path / "data") == [str(tmp_path / f"data/{name}") for name in ("a.nii.gz", "b.img")]


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/M\xfcller")
    with pytest.raises(UserError, match=r"M\\xfcller"):
        find_images(tmp_path)


def test_structures_among_the_slices_of_a_folder_are_mentioned(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    write_dicom(tmp_path / "p1", dicom_slices(array, affine()))
    write_other_dicom(tmp_path / "p1")
    passed: list[Path] = []
    assert list(walk_images(tmp_path, passed)) == [tmp_path / "p1"]
    assert len(passed) == 2 and "2 of them hold DICOM structures" in passed_over(passed, tmp_path)


def test_pairs_and_mgz_are_images_and_a_half_pair_is_not(tmp_path):
    touch(tmp_path, "a.img", "a.hdr", "B.IMG", "B.HDR", "c.mgz", "d.mgh", "e.img", "f.hdr")
    passed: list[Path] = []
    assert sorted(image.name for image in walk_images(tmp_path, passed)) == ["B.IMG", "a.img", "c.mgz", "d.mgh"]
    assert [file.name for file in passed] == ["e.img", "f.hdr"]


@pytest.mark.parametrize("names", [["x.mnc", "deep/y.MNC", "z.img.gz"], ["p.png", "q.npy", "r.h5"]])
def test_files_that_no_reader_knows_are_counted_in_one_line(names, tmp_path, caplog):
    touch(
        tmp_path, "a.nii", "b.mhd", "b.raw", "c.d.nhdr", "c.d.raw.gz", "notes.txt", "table.csv", ".hidden.mnc", *names
    )
    assert found(tmp_path) == ["a.nii", "b.mhd", "c.d.nhdr"]
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("3 files") and str(tmp_path) in line
    assert all(Path(name).suffix.lower() in line for name in names)


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        ("a.mhd", ["raw/x.raw"], "ElementDataFile = raw/x.raw\n"),
        ("deep/a.MHD", ["raw/x.zraw"], "ElementDataFile = ../raw/x.zraw\n"),
        ("a.nhdr", ["s_01.raw", "s_02.raw"], "NRRD0004\ndata file: s_%02d.raw 1 2 1\n"),
        ("a.mhd", ["s/1.raw", "s/2.raw"], "NDims = 3\nElementDataFile = LIST\ns/1.raw\ns/2.raw\n"),
        ("a.img", ["a.hdr", "a.mat"], ""),
    ],
)
def test_files_that_a_header_names_are_parts_of_its_image(header, data, text, tmp_path, caplog):
    touch(tmp_path, header, *data)
    (tmp_path / header).write_text(text)
    assert found(tmp_path) == [header]
    assert not caplog.records
    touch(tmp_path, "raw/stray.raw")
    assert found(tmp_path) == [header]
    assert caplog.records[0].message.startswith("1 files")


def test_files_beside_slices_are_left_to_the_reader_of_the_series(tmp_path, caplog):
    touch(tmp_path, "scan/1.dcm", "scan/x.jpg")
    assert found(tmp_path) == ["scan"]
    assert not caplog.records


def test_nnunets_channels_of_a_case_are_one_image(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "x/a_0001.nii.gz", "x/a_0000.nii.gz", "b_0001.nii.gz")
    images = [[f"{tmp_path}/a_0000.nii.gz", f"{tmp_path}/a_0001.nii.gz"], f"{tmp_path}/b_0001.nii.gz",
              [f"{tmp_path}/x/a_0000.nii.gz", f"{tmp_path}/x/a_0001.nii.gz"]]  # fmt: skip
    assert grouped_channels(find_images(tmp_path)) == images
    assert len(find_images(tmp_path)) == 5  # a network of one channel


@pytest.mark.parametrize("other", ["scan.nii.gz", "a_001.nii.gz", "0000.nrrd"])
def test_files_in_another_notation_are_images_of_their_own(tmp_path, other):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", other)
    assert len(grouped_channels(find_images(tmp_path))) == 3


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.b/la_000.nii.gz", "la_000"),
        ("x.NII", "x"),
        ("x.Nii.GZ", "x"),
        ("v1.2.nrrd", "v1.2"),
        ("Fall 7 ü.MHA", "Fall 7 ü"),
        ("folder/dicom", "dicom"),
        ("folder/1.2.840/", "1.2.840"),
        ("folder/dicom#1.2.840", "dicom#1.2.840"),
    ],
)
def test_a_case_is_named_after_its_file_without_image_endings(path, name):
    assert case_name(path) == name


def test_an_image_that_a_list_gives_twice_is_used_once(tmp_path, caplog) -> None:
    (tmp_path / "list.txt").write_text("a.nii\nb.nii\na.nii\n")
    assert listed_images(tmp_path / "list.txt") == [str(tmp_path / "a.nii"), str(tmp_path / "b.nii")]
    assert "1 images more than once" in caplog.text


def test_slices_of_one_series_in_two_folders_are_mentioned(tmp_path, caplog) -> None:
    slices = dicom_slices(volume((6, 5, 8)), affine())
    write_dicom(tmp_path / "a", slices[:4])
    write_dicom(tmp_path / "b", slices[4:])
    assert find_images(tmp_path) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert f"{tmp_path / 'a'} and {tmp_path / 'b'}" in caplog.text
    caplog.clear()
    write_dicom(tmp_path / "b", [replace(each, series="1.2.826.0.1.2") for each in slices[4:]])
    find_images(tmp_path)
    assert not caplog.text
