# SPDX-License-Identifier: Apache-2.0
"""check_data on a valid folder with one defect at a time: it reports this defect and no other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests import forked_command
from tests.check_folder import SHAPE, CheckFolder
from tests.volume_files import affine, oblique, save, stored_as

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> CheckFolder:
    return CheckFolder(tmp_path / "data")


def test_a_sound_folder_is_clean(folder) -> None:
    shown, error = folder.run()
    assert error is None
    assert "4 labelled, 2 unlabelled, 1 validation and 2 test cases: 9 images and 7 labels are read" in shown
    assert folder.rows() == []


# ------------------------------------------------------------------ files and lists


def test_a_truncated_file_is_unreadable(folder) -> None:
    for path in (folder.image("u1"), folder.label("t0")):
        path.write_bytes(path.read_bytes()[:-200])
    assert folder.check() == {("unreadable file", "u1"), ("unreadable file", "t0")}
    assert len(folder.rows()) == 2, "headers and voxels fail on the same file, which is reported once"


def test_a_file_of_another_kind_is_unreadable(folder) -> None:
    folder.image("l2").write_text("<html>404</html>")
    assert folder.check() == {("unreadable file", "l2")}


def test_all_missing_files_are_named(folder) -> None:
    folder.image("l0").unlink()
    folder.image("t1").unlink()
    folder.label("v0").unlink()
    assert folder.check() == {("missing image", "l0"), ("missing image", "t1"), ("missing label", "v0")}


def test_an_image_without_a_label_where_one_is_promised_is_an_error(folder) -> None:
    del folder.lists["training"][1]["label"]
    folder.label("l1").unlink()
    assert folder.check() == {("missing label", "l1")}


def test_a_test_case_without_a_label_is_a_warning(folder) -> None:
    folder.lists["test"][1] = "images/t1.nii.gz"
    folder.label("t1").unlink()
    assert folder.check() == {("test without label", "t1")}
    assert folder.run()[1] is None


def test_a_label_without_an_image_is_a_warning(folder) -> None:
    shutil.copy(folder.label("l0"), folder.label("x7"))
    assert folder.check() == {("label without image", "")}
    assert folder.rows()[0]["file"] == str(folder.label("x7"))
    assert folder.run()[1] is None


def test_an_entry_of_the_datalist_that_is_no_case_does_not_hide_the_rest(folder) -> None:
    folder.lists["test"].append({"label": "labels/t0.nii.gz"})
    folder.label("l0").unlink()
    assert folder.check() == {("bad entry in datalist", ""), ("missing label", "l0")}


def test_numbers_of_cases_out_of_range_do_not_hide_the_rest(folder) -> None:
    folder.image("l0").unlink()
    assert folder.check(labelled_cases=9) >= {("setting", ""), ("missing image", "l0")}


def test_an_image_in_two_lists_is_reported_once(folder) -> None:
    folder.lists["test"][0] = folder.entry("l3")
    assert folder.check() == {("image in two lists", "l3"), ("label without image", "")}  # t0's label is left over


# ------------------------------------------------------------------ grids


def test_an_image_and_a_label_of_different_shape_are_an_error(folder) -> None:
    folder.save_label("l1", folder.classes()[:-1])
    assert folder.check() == {("shapes differ", "l1")}


def with_channels(folder: CheckFolder, second: np.ndarray, grid: np.ndarray | None = None) -> dict:
    """Give every case a second channel; that of l2 is `second`."""
    for entries in folder.lists.values():
        for number, entry in enumerate(entries):
            name = Path(entry["image"]).name.split(".")[0]
            folder.save_image(f"{name}_b", -folder.image_of(name))
            entries[number] = {**entry, "image": [entry["image"], f"images/{name}_b.nii.gz"]}
    folder.save_image("l2_b", second, grid)
    return {"in_channels": 2}


def test_channels_of_different_shape_are_an_error(folder) -> None:
    assert folder.check(**with_channels(folder, folder.intensities(99)[:, 1:])) == {("shapes differ", "l2")}


def test_channels_on_different_grids_are_an_error(folder) -> None:
    grid = affine()
    grid[0, 3] += 0.5
    assert folder.check(**with_channels(folder, folder.intensities(99), grid)) == {("grids differ", "l2")}


def test_another_number_of_channels_than_declared_is_an_error(folder) -> None:
    folder.save_image("u0", np.stack([folder.intensities(5), folder.intensities(98)], axis=-1))
    assert folder.check() == {("number of channels", "u0")}


def test_a_label_with_channels_is_an_error(folder) -> None:
    folder.save_label("l0", np.eye(3, dtype=np.uint8)[folder.classes()])
    assert folder.check() == {("number of channels", "l0")}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_origin_is_an_error(folder, axis) -> None:
    grid = affine()
    grid[axis, 3] += 0.75  # half of the smallest side of a voxel
    folder.save_label("v0", folder.classes(), grid)
    assert folder.check() == {("grids differ", "v0")}
    assert "0.75 mm" in folder.rows()[0]["what"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_axis_is_an_error(folder, axis) -> None:
    grid = affine()
    grid[:3, axis] *= -1
    folder.save_label("l3", folder.classes(), grid)
    assert folder.check() == {("grids differ", "l3")}


def test_a_rounding_error_of_the_direction_is_accepted(folder) -> None:
    grid = oblique()
    folder.save_image("l3", folder.image_of("l3"), grid)
    rounded = grid.copy()
    rounded[:3, :3] += 1e-8 * np.arange(9).reshape(3, 3)
    rounded[:3, 3] += 1e-4
    folder.save_label("l3", folder.classes(), rounded)
    assert folder.check() == set()


def test_a_turn_that_only_the_far_corner_shows_is_an_error(folder) -> None:
    """One degree about x: 32 mm away, along y, it is 0.56 mm, more than a tenth of 1.5 mm."""
    a = np.radians(1.0)
    grid = affine()
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    grid[:3, :3] = turn @ grid[:3, :3]
    folder.save_label("l0", folder.classes(), grid)
    assert folder.check() == {("grids differ", "l0")}


# ------------------------------------------------------------------ label values


def labelled(folder: CheckFolder, name: str, value: float, dtype: type = np.uint8) -> None:
    label = folder.classes().astype(dtype)
    label[0, 0, :2] = value
    folder.save_label(name, label)


def test_an_undeclared_value_is_an_error(folder) -> None:
    labelled(folder, "t1", 7)
    assert folder.check() == {("undeclared label value", "t1")}
    assert all(text in folder.rows()[0]["what"] for text in ("7", "0, 1, 2", "label_values"))


@pytest.mark.parametrize("value", [1.5, np.nan, np.inf])
def test_a_label_that_is_not_whole_numbers_is_an_error(folder, value) -> None:
    labelled(folder, "l1", value, np.float32)
    assert folder.check() == {("label not whole numbers", "l1")}


def test_a_value_within_rounding_is_rounded_and_counted(folder) -> None:
    labelled(folder, "l2", 0.9999, np.float32)
    assert folder.check() == {("label rounded", "l2")}
    assert "2 voxels" in folder.rows()[0]["what"]
    assert folder.run()[1] is None


def test_a_label_scaled_by_its_header_is_rounded(folder) -> None:
    image = nibabel.Nifti1Image(folder.classes().astype(np.int16) * 300, affine())
    image.header.set_slope_inter(1 / 300, 0)
    nibabel.save(image, folder.label("l2"))
    assert np.unique(nibabel.load(folder.label("l2")).dataobj)[1] != 1  # 300 times the nearest float of 1 / 300
    assert folder.check() == {("label rounded", "l2")}


def test_255_is_an_error_unless_it_is_declared_or_ignored(folder) -> None:
    labelled(folder, "l0", 255)
    assert folder.check() == {("label value 255", "l0")}
    assert folder.check(ignore_value=255) == set()
    names = ["background", "organ", "vessel", "mask"]
    assert folder.check(label_names=names, label_values=[0, 1, 2, 255]) == set()


def test_a_label_without_structures_is_a_warning(folder) -> None:
    folder.save_label("l1", np.zeros(SHAPE, np.uint8))
    assert folder.check() == {("empty label", "l1")}
    assert folder.run()[1] is None


def test_a_label_of_ignored_voxels_alone_is_an_error(folder) -> None:
    folder.save_label("l1", np.full(SHAPE, 9, np.uint8))
    assert folder.check(ignore_value=9) == {("label all ignored", "l1")}


def test_a_class_that_no_labelled_case_holds_is_an_error(folder) -> None:
    """The test and validation cases hold it, which does not help."""
    for name in ("l0", "l1", "l2", "l3"):
        folder.save_label(name, np.minimum(folder.classes(), 1))
    assert folder.check() == {("class without a case", "")}
    assert "the value 2 of the class 'vessel'" in folder.rows()[0]["what"]


# ------------------------------------------------------------------ intensities


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_an_error(folder, value) -> None:
    image = folder.image_of("u0").astype(np.float32)
    image[3, 4, 5] = value
    folder.save_image("u0", image)
    assert folder.check() == {("NaN or infinity", "u0")}
    counts = ["1", "0"] if np.isnan(value) else ["0", "1"]  # of NaN and of infinite voxels
    assert re.findall(r"\b\d+\b", folder.rows()[0]["what"].split(".nii.gz")[1]) == counts


def test_constant_images_are_errors_and_no_copies_of_each_other(folder) -> None:
    for name in ("l0", "t0"):
        folder.save_image(name, np.full(SHAPE, 7, np.int16))
    assert folder.check() == {("constant image", "l0"), ("constant image", "t0")}


# ------------------------------------------------------------------ headers and cohort


def test_a_header_without_orientation_is_a_warning(folder) -> None:
    """Image and label are both read as LPS with the origin at 0."""
    for path in (folder.image("l0"), folder.label("l0")):
        image = nibabel.load(path)
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    assert folder.check() == {("no orientation", "l0")}
    assert [row["file"] for row in folder.rows()] == [str(folder.image("l0")), str(folder.label("l0"))]
    assert folder.run()[1] is None


def test_a_spacing_far_from_the_rest_is_a_warning(folder) -> None:
    folder.save_image("u1", folder.image_of("u1"), affine((1.5, 2.0, 25.0)))
    assert folder.check() == {("unusual spacing", "u1")}
    assert folder.run()[1] is None


def test_a_size_far_from_the_rest_is_a_warning(folder) -> None:
    folder.save_image("u1", np.concatenate([folder.intensities(n) for n in (50, 51, 52)], axis=2))
    assert folder.check() == {("unusual size", "u1")}


def test_another_resolution_of_the_same_body_is_usual(folder) -> None:
    """Twice the voxels of 0.6 times the size: 1.2 times as large."""
    image = np.random.default_rng(77).normal(size=[2 * n for n in SHAPE]).astype(np.float32)
    folder.save_image("u1", image, affine((0.9, 1.2, 1.5)))
    assert folder.check() == set()


def test_an_orientation_that_differs_is_a_note(folder) -> None:
    for load, store in ((folder.image, folder.save_image), (folder.label, folder.save_label)):
        array = np.asarray(nibabel.load(load("t0")).dataobj)
        store("t0", *stored_as(array, affine(), "PIR"))
    assert folder.check() == {("orientation differs", "t0")}
    assert folder.run()[1] is None


def test_a_label_stored_in_another_order_than_its_image_is_a_note(folder) -> None:
    folder.save_label("l0", *stored_as(folder.classes(), affine(), "LPS"))
    assert folder.check() == {("orientation differs", "l0")}
    assert "stored as LPS and its image as RAS" in folder.rows()[0]["what"]


def test_a_volume_smaller_than_the_patch_is_a_note(folder) -> None:
    folder.save_image("u0", folder.image_of("u0")[:, :15])
    assert folder.check() == {("smaller than patch", "u0")}
    assert "18 x 15 x 16 voxels" in folder.rows()[0]["what"]
    assert folder.run()[1] is None


# ------------------------------------------------------------------ copies


def test_the_same_image_twice_in_training_is_a_warning(folder) -> None:
    """As a copy in another format, type and storage order."""
    array, grid = stored_as(folder.image_of("l0").astype(np.float32), affine(), "LPS")
    save(folder.root / "images/u1.mha", array, grid)
    folder.lists["training"][-1]["image"] = "images/u1.mha"
    assert folder.check() - {("orientation differs", "u1")} == {("same image twice", "u1")}
    assert folder.run()[1] is None


@pytest.mark.parametrize("name", ["v0", "t0"])
def test_the_same_image_in_train_and_test_is_an_error(folder, name) -> None:
    shutil.copy(folder.image("u0"), folder.image(name))
    assert folder.check() == {("image in train and test", name)}


# ------------------------------------------------------------------ all together


def test_all_problems_are_reported_each_with_its_case(folder) -> None:
    folder.image("l0").write_bytes(b"")
    labelled(folder, "l1", 7)
    folder.save_label("l2", folder.classes()[1:])
    shutil.copy(folder.image("l3"), folder.image("t1"))
    folder.save_image("u0", np.zeros(SHAPE, np.int16))
    folder.label("v0").unlink()
    assert folder.check() == {
        ("unreadable file", "l0"),
        ("undeclared label value", "l1"),
        ("shapes differ", "l2"),
        ("image in train and test", "t1"),
        ("constant image", "u0"),
        ("missing label", "v0"),
    }
    shown, error = folder.run()
    assert "6 errors, 0 warnings, 0 notes" in error and str(folder.output / "check_data.csv") in error
    assert "\n" not in error
    assert all(kind in shown for kind in ("unreadable file", "shapes differ", "missing label"))
    assert str(folder.root) not in shown, "paths are shown relative to the dataset's folder"


# ------------------------------------------------------------------ the command


def test_the_command_prints_every_finding_and_ends_with_an_exit_code(folder, tmp_path) -> None:
    """The label files of unlabelled cases are unreadable, as in all folders of this file."""
    labelled(folder, "l0", 255)
    folder.lists["training"][0]["case"] = "first"
    folder.run()  # writes dataset.json
    command = [
        *("monai.bundle", "run", "check_data", "--bundle_root", str(ROOT)),
        *("--config_file", str(ROOT / "configs/train.yaml")),
        *("--dataset_dir", str(folder.root), "--labelled_cases", "4"),
        *("--label_names", "['background','organ','vessel']", "--spacing", "[1.5,2,2.5]", "--roi_size", "[16,16,16]"),
        *("--output_dir", str(tmp_path / "out")),
    ]
    done = forked_command.run(command, tmp_path / "elsewhere")
    assert done.code == 1
    assert "label value 255" in done.output and "first" in done.output
    assert "Traceback" not in done.errors
    assert "1 error, 0 warnings, 0 notes" in done.errors.splitlines()[-1]
    assert (tmp_path / "out/check_data.csv").read_text() == (folder.output / "check_data.csv").read_text()


def test_the_configuration_hands_on_what_the_dataset_declares(folder, make_workflow, tmp_path, capsys) -> None:
    labelled(folder, "l0", 255)
    label = np.where(folder.classes() == 2, 5, folder.classes())
    for name in ("l1", "l2", "l3", "v0", "t0", "t1"):
        folder.save_label(name, label)
    folder.run()  # writes dataset.json
    workflow = make_workflow(
        "train.yaml", run_id="check_data", dataset_dir=str(folder.root), labelled_cases=4, spacing=[1.5, 2.0, 2.5],
        label_names=["background", "organ", "vessel", "duct"], label_values=[0, 1, 2, 5], ignore_value=255,
        roi_size=[16, 16, 16],
    )  # fmt: skip
    workflow.run()
    assert "0 errors, 1 warning, 0 notes" in capsys.readouterr().out
    assert "values never together" in (tmp_path / "out/check_data.csv").read_text()
