# SPDX-License-Identifier: Apache-2.0
"""Conversion of the left atrium volumes to NIfTI keeps voxels and positions and uses the published split."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from scripts.cli.commands import main
from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.left_atrium import convert, crop_box
from scripts.dataset_setup.roles import choose_tests
from scripts.errors import UserError
from tests.volume_files import save

AFFINE = np.array([[-0.625, 0, 0, 40], [0, -0.625, 0, 30], [0, 0, 0.625, -20], [0, 0, 0, 1]])


def challenge_case(folder: Path, seed: int, shape=(9, 7, 5)) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, shape).astype(np.uint8)
    label = np.where(draw.random(shape) < 0.3, 255, 0).astype(np.uint8)
    save(folder / "lgemri.nrrd", image, AFFINE)
    save(folder / "laendo.nrrd", label, AFFINE)
    return image, label


@pytest.fixture
def h5(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for h5py, which is not a requirement: it reads files that NumPy wrote."""

    class File:
        def __init__(self, path, mode):
            assert mode == "r"
            try:
                with np.load(path) as arrays:
                    self.arrays = dict(arrays)
            except ValueError as error:
                raise OSError("file signature not found") from error

        def __enter__(self):
            return self.arrays

        def __exit__(self, *_):
            pass

    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=File))

    def write(path: Path, **arrays: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


def loaded(folder: Path, part: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    volume = nib.load(folder / part / f"{name}.nii.gz")
    return np.asarray(volume.dataobj), volume.affine


def test_challenge_files_keep_voxels_and_place_and_255_becomes_1(tmp_path: Path, capsys) -> None:
    image, label = challenge_case(tmp_path / "raw/CASE_A", 0)
    challenge_case(tmp_path / "raw/CASE_B", 1)
    assert main(["convert-left-atrium", str(tmp_path / "raw"), str(tmp_path / "out")]) == 0
    written, affine = loaded(tmp_path / "out", "images", "CASE_A")
    assert written.dtype == np.uint8 and np.array_equal(written, image)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    written, affine = loaded(tmp_path / "out", "labels", "CASE_A")
    assert np.array_equal(written, label == 255)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    assert "2 training and 0 test" in capsys.readouterr().out


def test_h5_files_become_volumes_of_0625_mm_named_after_their_folder(tmp_path: Path, h5) -> None:
    draw = np.random.default_rng(0)
    image, label = draw.normal(size=(6, 5, 4)), draw.integers(0, 2, (6, 5, 4)).astype(np.uint8)
    h5(tmp_path / "raw/0RZ/mri_norm2.h5", image=image, label=label)
    h5(tmp_path / "raw/other.h5", image=image + 1, label=label)
    convert(tmp_path / "raw", tmp_path / "out")
    written, affine = loaded(tmp_path / "out", "images", "0RZ")
    np.testing.assert_allclose(written, image, rtol=1e-6)
    assert affine.diagonal().tolist() == [0.625, 0.625, 0.625, 1.0]
    np.testing.assert_allclose(loaded(tmp_path / "out", "images", "other")[0], image + 1, rtol=1e-6)
    assert np.array_equal(loaded(tmp_path / "out", "labels", "0RZ")[0], label)


@pytest.mark.parametrize("place", ["raw", "."])
def test_lists_beside_the_cases_give_split_and_order(place, tmp_path: Path) -> None:
    for seed, name in enumerate("DACBE"):
        challenge_case(tmp_path / "raw" / name, seed)
    (tmp_path / place / "train.list").write_text("D\nA/mri_norm2.h5\n\nC\n")
    (tmp_path / place / "test.list").write_text("B\r\n")
    messages = []
    convert(tmp_path / "raw", tmp_path / "out", show=messages.append)
    cases = load_cases(DatasetSpec(tmp_path / "out", labelled_cases=2))
    assert [case["case"] for case in cases.labelled] == ["D", "A"]
    assert [case["case"] for case in cases.unlabelled] == ["C"]
    assert [case["case"] for case in cases.test] == ["B"]
    assert "1 unlisted" in messages[0]
    assert not (tmp_path / "out/images/E.nii.gz").exists()


def test_without_lists_a_fifth_of_the_cases_is_chosen_by_hash(tmp_path: Path) -> None:
    for seed, name in enumerate("ABCDE"):
        challenge_case(tmp_path / "raw" / name, seed)
    convert(tmp_path / "raw", tmp_path / "out")
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    tests = [Path(case["image"]).name.split(".")[0] for case in content["test"]]
    assert set(tests) == choose_tests(list("ABCDE"), 1)
    assert len(content["training"]) == 4 and content["cropped_around_the_label"] is False


def test_the_crop_is_the_label_widened_to_the_patch_and_15_voxels_more() -> None:
    label = np.zeros((300, 400, 4), bool)
    label[100:250, 180:200, 1:3] = True  # 150 voxels; 20, which lack 92 of 112: 46 more at each end
    assert crop_box(label) == (slice(85, 265), slice(180 - 61, 200 + 61), slice(0, 4))


def test_the_crop_stops_at_the_volumes_border() -> None:
    label = np.zeros((120, 90, 4), bool)
    label[2:110, 80:, :] = True
    assert crop_box(label) == (slice(0, 120), slice(80 - 66, 90), slice(0, 4))


def test_a_cropped_volume_keeps_its_position(tmp_path: Path) -> None:
    image = np.zeros((200, 30, 3), np.uint8)
    label = np.zeros_like(image)
    label[150:160, 10:20, 1] = 255
    image[155, 15, 1] = 7
    save(tmp_path / "raw/A/lgemri.nrrd", image, AFFINE)
    save(tmp_path / "raw/A/laendo.nrrd", label, AFFINE)
    assert main(["convert-left-atrium", str(tmp_path / "raw"), str(tmp_path / "out"), "--crop"]) == 0
    written, affine = loaded(tmp_path / "out", "images", "A")
    assert written.shape == (200 - (150 - 66), 30, 3)
    place = affine @ [*np.argwhere(written == 7)[0], 1]
    np.testing.assert_allclose(place, AFFINE @ [155, 15, 1, 1], atol=1e-4)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["cropped_around_the_label"] is True


def message_of(folder: Path, output: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        convert(folder, output, **options)
    return str(caught.value)


def test_an_error_names_the_file_or_option(tmp_path: Path, h5) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert str(raw) in message_of(raw, out)
    raw.mkdir()
    assert str(raw) in message_of(raw, out)
    challenge_case(raw / "A", 0)
    for name in ("train.list", "test.list"):
        (raw / name).write_text("A\n")
    message = message_of(raw, out)
    assert str(raw) in message and " A " in message
    (raw / "test.list").write_text("Z\n")
    message = message_of(raw, out)
    assert str(raw) in message and " Z:" in message
    (raw / "test.list").unlink()
    save(raw / "A/laendo.nrrd", np.full((9, 7, 5), 3, np.uint8), AFFINE)
    message = message_of(raw, out)
    assert str(raw / "A") in message and "[3]" in message
    save(raw / "A/laendo.nrrd", np.zeros((9, 7, 5), np.uint8), AFFINE)
    message = message_of(raw, out, crop=True)
    assert str(raw / "A") in message and "--crop" in message
    save(raw / "A/laendo.nrrd", np.zeros((9, 7, 4), np.uint8), AFFINE)
    message = message_of(raw, out)
    assert str(raw / "A") in message and "(9, 7, 5)" in message and "(9, 7, 4)" in message
    h5(raw / "A.h5", image=np.zeros((2, 3, 4)))
    message = message_of(raw, out)
    assert str(raw / "A") in message and str(raw / "A.h5") in message
    (raw / "A/laendo.nrrd").unlink()
    assert "laendo.nrrd" in message_of(raw, out)
    (raw / "A/lgemri.nrrd").unlink()
    message = message_of(raw, out)
    assert str(raw / "A.h5") in message and "`label`" in message
    (raw / "A.h5").write_bytes(b"cut off")
    assert str(raw / "A.h5") in message_of(raw, out)
    out.mkdir(exist_ok=True)
    (out / "dataset.json").write_text("{}")
    assert str(out / "dataset.json") in message_of(raw, out)


def test_missing_h5py_is_named_in_the_last_line_of_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.h5").write_bytes(b"")
    assert main(["convert-left-atrium", str(tmp_path / "raw"), str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Error: " in last and "a.h5" in last and "pip install h5py" in last
