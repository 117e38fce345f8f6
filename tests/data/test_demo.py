# SPDX-License-Identifier: Apache-2.0
"""The demo dataset: determinism, volumes, and folders that already exist."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import demo
from scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = (32, 28, 20)
ARGUMENTS = {"num_training": 2, "num_validation": 1, "num_test": 1, "shape": SMALL}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure_demo_dataset(tmp_path_factory.mktemp("made") / "demo", **ARGUMENTS)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the dataset to spoil."""
    return Path(shutil.copytree(made, tmp_path / "demo"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def best_window_dice(image: np.ndarray, mask: np.ndarray) -> float:
    """The highest Dice coefficient that any window [low, high) of intensities reaches against `mask`."""
    edges = np.append(np.unique(np.quantile(image, np.linspace(0, 1, 100))), image.max() + 1)
    hits = np.append(0, np.histogram(image[mask], edges)[0].cumsum())
    taken = np.append(0, np.histogram(image, edges)[0].cumsum())
    low, high = np.triu_indices(len(edges), k=1)
    return (2 * (hits[high] - hits[low]) / (taken[high] - taken[low] + mask.sum())).max()


def test_same_seed_same_bytes(made: Path, tmp_path: Path) -> None:
    again = demo.ensure_demo_dataset(tmp_path / "again", **ARGUMENTS)
    assert contents(again) == contents(made)


def test_other_seed_other_voxels() -> None:
    first, second = (demo.make_demo_case(seed, "training", 0, SMALL)[0] for seed in (0, 1))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_case_does_not_depend_on_number_of_cases(made: Path, tmp_path: Path) -> None:
    fewer = demo.ensure_demo_dataset(tmp_path / "fewer", num_training=1, num_validation=0, num_test=1, shape=SMALL)
    volumes = {name: data for name, data in contents(fewer).items() if name.endswith(".nii.gz")}
    assert len(volumes) == 4
    assert volumes.items() <= contents(made).items()


def test_decathlon_folder(made: Path) -> None:
    head = json.loads((made / "dataset.json").read_text())
    assert head["labels"] == {"0": "background", "1": "large organ", "2": "small organ", "3": "vessel"}
    assert [len(head[split]) for split in demo.SPLITS] == [2, 1, 1]
    for entry in head["training"] + head["validation"] + head["test"]:
        image, label = nib.load(made / entry["image"]), nib.load(made / entry["label"])
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert image.shape == label.shape
        assert np.array_equal(image.affine, label.affine)
        assert np.all(image.affine[:3, 3] != 0)
    assert [path.name for path in made.parent.iterdir()] == ["demo"]  # no temporary folder stays behind


def test_file_holds_the_case(made: Path) -> None:
    image, label, affine = demo.make_demo_case(0, "training", 1, SMALL)
    stored = nib.load(made / "images" / "demo_training_001.nii.gz")
    assert np.array_equal(np.asanyarray(stored.dataobj), image)
    assert np.array_equal(stored.affine, affine)
    assert np.array_equal(np.asanyarray(nib.load(made / "labels" / "demo_training_001.nii.gz").dataobj), label)


def test_cases_at_full_size() -> None:
    cases = [demo.make_demo_case(0, "training", index) for index in range(4)]
    for image, label, affine in cases:
        assert np.all(np.abs(np.subtract(image.shape, demo.BASE_SHAPE)) <= (6, 5, 4))
        assert np.all(np.bincount(label.ravel(), minlength=4)[1:] >= demo.MIN_VOXELS)
        assert label.max() == 3
        assert np.allclose(np.abs(affine.diagonal()[:3]), demo.BASE_SPACING, rtol=0.07)
        scores = [best_window_dice(image, label == value) for value in (1, 2, 3)]
        assert np.mean(scores) < 0.45, "a window of intensities must not segment the classes"
        assert max(scores[1:]) < 0.4
    image, label, _ = cases[0]
    assert max(best_window_dice(image, label == value) for value in (1, 2, 3)) < 0.6


def test_both_orientations_with_large_organ_on_the_right() -> None:
    codes = set()
    for index in range(12):
        _, label, affine = demo.make_demo_case(0, "test", index, SMALL)
        codes.add("".join(nib.aff2axcodes(affine)))
        right = {value: (affine[:3, :3] @ np.argwhere(label == value).mean(0))[0] for value in (1, 3)}
        assert right[1] > right[3]  # in patient space, so whichever way the axes run
    assert codes == {"RAS", "LPS"}


def test_a_complete_folder_is_not_changed(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    before = stamps(folder)
    assert demo.ensure_demo_dataset(folder, **ARGUMENTS) == folder
    assert stamps(folder) == before


def test_interruption_leaves_nothing(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.ensure_demo_dataset(tmp_path / "demo", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "demo").mkdir()  # an empty folder is as good as none
    assert contents(demo.ensure_demo_dataset(tmp_path / "demo", **ARGUMENTS)) == contents(made)


def test_other_files_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "demo_training_000.nii.gz").write_text("patient")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        demo.ensure_demo_dataset(tmp_path, **ARGUMENTS)
    assert contents(tmp_path) == before


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UserError, match=str(tmp_path / "demo")):
        demo.ensure_demo_dataset(tmp_path / "demo", **ARGUMENTS)


def test_two_processes_at_once_both_end_with_the_whole_dataset(tmp_path: Path, made: Path) -> None:
    words = "from scripts.data.demo import ensure_demo_dataset as make; "
    words += f"print(make({str(tmp_path / 'demo')!r}, **{ARGUMENTS}))"
    runs = [subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    assert [run.communicate()[0].strip() for run in runs] == [str(tmp_path / "demo")] * 2
    assert [run.returncode for run in runs] == [0, 0]
    assert contents(tmp_path / "demo") == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_slower_process_keeps_the_files_of_the_other(tmp_path: Path, made: Path, monkeypatch) -> None:
    """Both have seen an empty folder; the other one finishes while this one writes."""
    write = demo._write_dataset

    def overtaken(folder: Path, *arguments: object) -> None:
        write(folder, *arguments)
        shutil.copytree(made, tmp_path / "demo")

    monkeypatch.setattr(demo, "_write_dataset", overtaken)
    assert contents(demo.ensure_demo_dataset(tmp_path / "demo", **ARGUMENTS)) == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("bad", [{"num_training": 0}, {"num_test": -1}, {"seed": -1}, {"shape": (8, 28, 20)}])
def test_bad_arguments(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(ValueError):
        demo.ensure_demo_dataset(tmp_path / "demo", **{**ARGUMENTS, **bad})
    assert list(tmp_path.iterdir()) == []
