# SPDX-License-Identifier: Apache-2.0
"""`new_dataset` overwrites nothing unless forced, copies safely, and refuses bad input in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from scripts.cli.commands import main
from scripts.dataset_setup.layouts import FoundCase, read_generated
from scripts.dataset_setup.new_dataset import copy_cases, new_dataset
from scripts.dataset_setup.roles import Request, Roles
from scripts.errors import UserError
from scripts.images.read import read_volume
from tests.scan_folder import MACHINE, SHAPE, make_folder, refusal, volume

# ------------------------------------------------------------------ what is never overwritten


@pytest.mark.parametrize("there", ["mine.yaml", "dataset.json"])
def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, run, there: str) -> None:
    folder = make_folder(tmp_path / "data")
    run(folder)
    files = {"dataset.json": folder / "dataset.json", "mine.yaml": tmp_path / "configs" / "mine.yaml"}
    first = {name: file.read_bytes() for name, file in files.items()}
    for name in {*files} - {there}:
        files[name].unlink()
    files[there].write_bytes(first[there].replace(b"c0", b"c1"))  # in dataset.json another split
    kept = files[there].read_bytes()
    with pytest.raises(UserError, match=rf"{there}.*--force"):
        run(folder)
    assert files[there].read_bytes() == kept
    assert not any(files[name].exists() for name in {*files} - {there})
    run(folder, force=True)
    assert {name: file.read_bytes() for name, file in files.items()} == first


def test_a_datalist_with_the_same_split_is_kept(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    run(folder)
    file = folder / "dataset.json"
    file.write_text(file.read_text().replace("structure 1", "liver"))
    edited = file.read_bytes()
    (tmp_path / "configs" / "mine.yaml").unlink()
    settings, cases, text = run(folder)
    assert settings["datalist"] == "dataset.json" and len(cases.labelled) == 4
    assert file.read_bytes() == edited and f"Wrote {file}" not in text


def test_an_empty_or_foreign_file_does_not_count_as_generated(tmp_path: Path) -> None:
    for text in ('{"training": []}', "", "[1]", '{"written_by": "someone"}'):
        (tmp_path / "dataset.json").write_text(text)
        assert read_generated(tmp_path / "dataset.json") == {}


def test_a_second_name_does_not_change_the_first_split(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    run(folder)
    first = (folder / "dataset.json").read_bytes()
    same, _, _ = run(folder, name="again")
    assert same["datalist"] == "dataset.json"
    other, cases, _ = run(folder, name="other", test_cases=3)
    assert other["datalist"] == "dataset_other.json" and len(cases.test) == 3
    assert (folder / "dataset.json").read_bytes() == first


def test_a_dry_run_writes_nothing(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    _, _, text = run(folder, dry_run=True)
    assert not (folder / "dataset.json").exists() and not (tmp_path / "configs").exists()
    assert "label_names:" in text and "5 with label" in text


def test_a_datalist_elsewhere_has_absolute_paths(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    settings, cases, _ = run(folder, output=tmp_path / "lists")
    assert settings["dataset_dir"] == str(tmp_path / "lists")
    listed = json.loads((tmp_path / "lists" / "dataset.json").read_text())
    assert all(Path(case["image"]).is_absolute() for case in listed["training"])
    assert len(cases.labelled) == 4
    assert not (folder / "dataset.json").exists()


def test_a_read_only_folder_asks_for_the_option_output(tmp_path: Path, run, monkeypatch) -> None:
    folder = make_folder(tmp_path / "data")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    message = refusal(run, folder)
    assert str(folder) in message and "--output" in message


def test_copies_are_whole_and_leave_the_originals(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data", unlabelled=0)
    volume(tmp_path / "more" / "x.nii.gz")
    settings, cases, _ = run(folder, unlabelled=tmp_path / "more", copy_to=tmp_path / "copy")
    assert settings["dataset_dir"] == str(tmp_path / "copy")
    listed = json.loads((tmp_path / "copy" / "dataset.json").read_text())
    assert listed["unlabeled"] == [{"image": "more/x.nii.gz"}]
    assert all((tmp_path / "copy" / case["label"]).is_file() for case in listed["training"])
    copied = Path(cases.labelled[0]["image"])
    assert copied.read_bytes() == (folder / "images" / copied.name).read_bytes()
    assert not (folder / "dataset.json").exists()
    copied.write_bytes(b"another file")
    message = refusal(run, folder, unlabelled=tmp_path / "more", copy_to=tmp_path / "copy", force=True)
    assert str(copied) in message and "--copy_to" in message
    assert "--copy_to" in refusal(run, folder, copy_to=folder / "copy")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(run, folder, copy_to=tmp_path / "file", name="again")


METAIMAGE = """NDims = 3
DimSize = 20 18 16
TransformMatrix = -1 0 0 0 -1 0 0 0 1
ElementType = MET_SHORT
ElementSpacing = 1.5 1.5 2
ElementDataFile = """
NRRD = """NRRD0004
type: short
dimension: 3
space: RAS
sizes: 20 18 16
space directions: (1.5,0,0) (0,1.5,0) (0,0,2)
endian: little
encoding: raw
data file: """


def apart(folder: Path, ending: str, data: str) -> None:
    """Replace each image by a header and the files `data`, where NAME is the name of the case."""
    for file in sorted((folder / "images").iterdir()):
        array, name = np.asarray(nibabel.load(file).dataobj), file.name.removesuffix(".nii.gz")
        file.unlink()
        header = file.with_name(f"{name}{ending}")
        given = data.replace("NAME", name)
        header.write_text((METAIMAGE if ending.lower() == ".mhd" else NRRD) + given + "\n")
        one = "%" not in given and "LIST" not in given
        parts = [given] if one else [given.split()[0] % k for k in range(1, 17)] if "%" in given else given.split()[1:]
        for part, content in zip(parts, [array] if one else np.moveaxis(array, 2, 0), strict=True):
            path = folder / "images" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.tobytes(order="F"))


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".MHD"])
@pytest.mark.parametrize(
    "data",
    [
        "NAME.raw",
        "raw/other NAME.raw",
        "../voxels/NAME [1].raw",
        "NAME/s%03d.raw 1 16 1",
        "\n".join(["LIST", *(f"NAME/{k}.raw" for k in range(16))]),
    ],
)
def test_the_files_that_a_header_names_are_copied_with_it(tmp_path: Path, run, ending: str, data: str) -> None:
    folder = make_folder(tmp_path / "data", labelled=3, unlabelled=0)
    apart(folder, ending, data)
    _, cases, text = run(folder, copy_to=tmp_path / "copy", test_cases=1)
    assert "skipped" not in text
    expected = {file.name: read_volume(file)[1] for file in (folder / "images").glob(f"c*{ending}")}
    shutil.rmtree(folder)
    for case in cases.labelled + cases.test:
        voxels = read_volume(case["image"])[1]
        np.testing.assert_array_equal(voxels, expected.pop(Path(case["image"]).name))
        assert voxels.shape == (1, *SHAPE)
    assert not expected


@pytest.mark.parametrize(("image", "header"), [(".img", ".hdr"), (".IMG", ".hdr")])
def test_both_files_of_a_pair_are_copied(tmp_path: Path, run, image: str, header: str) -> None:
    folder = make_folder(tmp_path / "data", labelled=3, unlabelled=0)
    for file in sorted((folder / "images").iterdir()):
        name = folder / "images" / f"{file.name.removesuffix('.nii.gz')} [a]"
        nibabel.save(nibabel.Nifti1Pair.from_image(nibabel.load(file)), f"{name}.img")
        file.unlink()
        Path(f"{name}.img").rename(f"{name}{image}")
        Path(f"{name}.hdr").rename(f"{name}{header}")
        (folder / "labels" / file.name).rename(folder / "labels" / f"{name.name}.nii.gz")
    _, cases, _ = run(folder, copy_to=tmp_path / "copy", test_cases=1)
    shutil.rmtree(folder)
    for case in cases.labelled + cases.test:
        assert read_volume(case["image"])[1].shape == (1, *SHAPE)


@pytest.mark.parametrize("data", ["../../NAME.raw", "ABSOLUTE/NAME.raw"])
def test_a_header_that_a_copy_would_not_complete_is_refused(tmp_path: Path, run, data: str) -> None:
    folder = make_folder(tmp_path / "data", labelled=3, unlabelled=0)
    apart(folder, ".mhd", data.replace("ABSOLUTE", str(tmp_path)))
    message = refusal(run, folder, copy_to=tmp_path / "copy", test_cases=1)
    assert ".mhd" in message and ".raw" in message
    assert not (tmp_path / "copy").exists()
    run(folder, test_cases=1)  # without a copy, the files can be read where they are


def test_a_lost_file_of_an_image_is_named_before_anything_is_copied(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", labelled=1, unlabelled=1)
    apart(folder, ".mhd", "raw/NAME.raw")
    (folder / "images" / "raw" / "c1.raw").unlink()
    roles = Roles(
        labelled=[FoundCase("c0", (str(folder / "images" / "c0.mhd"),), str(folder / "labels" / "c0.nii.gz"))],
        unlabelled=[FoundCase("c1", (str(folder / "images" / "c1.mhd"),))],
    )
    with pytest.raises(UserError, match=r"c1\.mhd .*raw/c1\.raw"):
        copy_cases(roles, [folder], tmp_path / "copy", lambda items, _: items)
    assert not (tmp_path / "copy").exists()


# ------------------------------------------------------------------ bad folders


def test_bad_folders_are_named_in_one_line(tmp_path: Path, run) -> None:
    assert str(tmp_path / "nowhere") in refusal(run, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(run, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(run, tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("")
    assert str(tmp_path / "notes") in refusal(run, tmp_path / "notes")
    bare = make_folder(tmp_path / "bare", labelled=0)
    assert str(bare) in refusal(run, bare)
    (bare / "labels").mkdir()
    (bare / "labels" / "c0.nii.gz").write_bytes(b"no image")
    assert "c0.nii.gz" in refusal(run, bare)
    assert not (bare / "dataset.json").exists()
    assert "--labels" in refusal(run, bare, labels=bare)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", ".hidden", "it's"])
def test_an_invalid_name_is_refused(tmp_path: Path, run, name: str) -> None:
    assert "--name" in refusal(run, make_folder(tmp_path / "data", 1, 0), name=name, config=tmp_path / "x.yaml")


def test_the_command_prints_one_line_and_exits_with_2(tmp_path: Path, capsys) -> None:
    assert main(["new-dataset", str(tmp_path / "nowhere"), "--name", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("\nError: ") and str(tmp_path / "nowhere") in captured.err
    assert "Traceback" not in captured.err
    assert main(["new-dataset", str(tmp_path / "nowhere"), "--name", "x", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_command_prints_the_written_files_and_the_next_commands(tmp_path: Path, capsys) -> None:
    folder = make_folder(tmp_path / "data")
    config = tmp_path / "x.yaml"
    assert (
        main(
            ["new-dataset", str(folder), "--name", "x", "--config", str(config), "--label_names", "nothing", "all else"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert f"Wrote {folder / 'dataset.json'}" in printed and f"Wrote {config}" in printed
    assert all(f"python -m scripts {command} x\n" in printed for command in ("check", "train", "evaluate"))
    assert yaml.safe_load(config.read_text())["label_names"] == ["nothing", "all else"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PermissionError(13, "Permission denied", "/data/a.nii.gz"), 1, "/data/a.nii.gz"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (UserError("No image."), 2, "No image."),
    ],
)
def test_any_error_of_the_command_is_printed_in_one_line(error, code, words, monkeypatch, capsys, tmp_path) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr("scripts.dataset_setup.new_dataset.new_dataset", fail)
    assert main(["new-dataset", str(tmp_path), "--name", "x"]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ") and words in line


@pytest.mark.parametrize("option", [{"channels": ("t1",)}, {"unlabelled": Path(".")}])
def test_an_option_without_effect_on_a_listed_dataset_is_refused(option, tmp_path) -> None:
    folder = make_folder(tmp_path / "data")
    cases = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(5)]
    (folder / "dataset.json").write_text(json.dumps({"training": cases}))
    with pytest.raises(UserError, match=rf"dataset\.json.*--{next(iter(option))}"):
        new_dataset(Request(folder, "x", config=tmp_path / "x.yaml", **option), MACHINE)
