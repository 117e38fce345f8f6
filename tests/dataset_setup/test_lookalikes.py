# SPDX-License-Identifier: Apache-2.0
"""Copies of labels, predictions and labels without an image are named instead of becoming unlabelled cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts.data.checks.cohort import labels_alone
from scripts.data.datalist import named_files
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request, assign, gather
from tests.check_folder import CheckFolder
from tests.scan_folder import MACHINE, make_folder, refusal, volume


def request(folder: Path, **options) -> Request:
    return Request(folder, "mine", **{"test_cases": 0, **options})


def numbers(folder: Path, **options) -> tuple[int, int, int]:
    """Labelled, unlabelled and validation cases."""
    roles = assign(gather(request(folder, **options))[0], request(folder, **options))
    return len(roles.labelled), len(roles.unlabelled), len(roles.validation)


@pytest.mark.parametrize("name", ["labels_old", "labels2", "expert_labels"])
def test_a_second_folder_of_labels_is_refused_or_left_out(name, tmp_path) -> None:
    make_folder(tmp_path)
    shutil.copytree(tmp_path / "labels", tmp_path / name)
    assert "both labels of images/c0" in refusal(gather, request(tmp_path))
    assert numbers(tmp_path, exclude=(name,)) == (5, 3, 0)
    assert numbers(tmp_path, labels=tmp_path / "labels") == (5, 3, 0)


def test_labels_of_other_programs_are_neither_images_nor_labels(tmp_path) -> None:
    make_folder(tmp_path)
    volume(tmp_path / "foreign_labels/c6.nii.gz", classes=(1,))
    volume(tmp_path / "foreign_labels/c1.nii.gz", classes=(1,))
    assert numbers(tmp_path) == (5, 3, 0)


@pytest.mark.parametrize("place", ["outputs/pseudo_labels", "pseudo_labels/run 2"])
def test_pseudo_labels_are_neither_images_nor_labels_and_are_mentioned(place, tmp_path) -> None:
    make_folder(tmp_path)
    for n in (1, 6):
        volume(tmp_path / place / f"c{n}.nii.gz", classes=(1,))
    volume(tmp_path / place / "c6_confidence.nii.gz")
    assert numbers(tmp_path) == (5, 3, 0)
    (note,) = gather(request(tmp_path))[1].notes
    assert note.startswith("3 ") and f"{place}/c1.nii.gz" in note


def nnunet_folder(folder: Path) -> Path:
    """As `pseudo-label --layout nnunet` writes it: c5, c6 and c7 have pseudo-labels."""
    make_folder(folder, labelled=8, unlabelled=0)
    for n in range(8):
        (folder / f"images/c{n}.nii.gz").rename(folder / f"images/c{n}_0000.nii.gz")
    for place in ("images", "labels"):
        (folder / place).rename(folder / f"{place}Tr")
    labels = {"background": 0, "organ": 1}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "pseudo_labels": ["c5", "c6", "c7"]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("inside", ["", "raw/Dataset007_x"])
def test_the_pseudo_labels_of_an_nnunet_folder_are_not_used_and_are_mentioned(inside, tmp_path, run) -> None:
    folder = tmp_path / "data"
    nnunet_folder(folder / inside)
    settings, cases, text = run(folder, test_cases=0)
    assert [case["case"] for case in cases.labelled] == ["c0", "c1", "c2", "c3", "c4"]
    assert [case["case"] for case in cases.unlabelled] == ["c5", "c6", "c7"]
    assert "labelsTr/c5.nii.gz" in text
    assert labels_alone(*named_files(settings["dataset_dir"], settings["datalist"])) == []
    (folder / inside / "dataset.json").write_text('{"pseudo_labels": 3}')  # of another program
    assert numbers(folder) == (8, 0, 0)


@pytest.mark.parametrize(
    "place", ["predictions/c6.nii.gz", "labels/../out/run 1/c6.nii.gz", "out/c6_prob.nii.gz", "out/c6.pred.2.nii.gz"]
)
def test_a_prediction_with_the_name_of_a_case_is_refused_or_left_out(place, tmp_path) -> None:
    make_folder(tmp_path)
    file = (tmp_path / place).resolve()
    volume(file, classes=(1,))
    message = refusal(gather, request(tmp_path))
    assert str(file.relative_to(tmp_path.resolve())) in message and "--exclude" in message
    assert numbers(tmp_path, exclude=(file.relative_to(tmp_path.resolve()).parts[0] + "/*",)) == (5, 3, 0)
    assert numbers(tmp_path, keep_lookalikes=True) == (5, 4, 0)


def test_a_name_that_only_begins_like_that_of_a_case_is_another_case(tmp_path) -> None:
    make_folder(tmp_path)
    volume(tmp_path / "more/c60.nii.gz")
    volume(tmp_path / "unlabelled/c6_visit2.nii.gz")
    assert numbers(tmp_path) == (5, 5, 0)


def test_images_of_two_sites_may_have_the_same_names(tmp_path) -> None:
    make_folder(tmp_path / "site_1")
    make_folder(tmp_path / "site_2", labelled=0, unlabelled=3)
    assert numbers(tmp_path) == (5, 6, 0)


def test_images_and_labels_for_validation_pair(tmp_path) -> None:
    make_folder(tmp_path)
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    (tmp_path / "labels").rename(tmp_path / "labelsTr")
    volume(tmp_path / "imagesVa/c9.nii.gz")
    volume(tmp_path / "labelsVa/c9.nii.gz", classes=(1,))
    assert numbers(tmp_path) == (5, 3, 1)


@pytest.mark.parametrize("place", ["results/z.nii.gz", "images/c7_output.nii.gz"])
def test_an_image_that_holds_few_whole_numbers_is_refused_and_found_by_the_check(place, tmp_path) -> None:
    make_folder(tmp_path)
    volume(tmp_path / place, classes=(1, 2))
    message = refusal(new_dataset, request(tmp_path, dry_run=True), MACHINE, lambda _: None)
    assert place in message and "--keep_lookalikes" in message
    new_dataset(request(tmp_path, dry_run=True, keep_lookalikes=True), MACHINE, lambda _: None)
    folder = CheckFolder(tmp_path / "check")
    folder.save_image("u1", folder.classes())
    assert ("image looks like a label", "u1") in folder.check()


@pytest.mark.parametrize("names", [["extra/x.mnc"], ["a.png", "images/b.img.gz"]])
def test_files_that_are_passed_over_are_counted_in_the_summary(names, tmp_path) -> None:
    make_folder(tmp_path)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    notes = gather(request(tmp_path))[1].notes
    assert [note.split(" ", 1)[0] for note in notes] == [str(len(names))]


def test_every_label_without_an_image_is_named(tmp_path) -> None:
    make_folder(tmp_path)
    names = [f"labels/x{n}.nii.gz" for n in range(12)]
    for name in names:
        volume(tmp_path / name, classes=(1,))
    message = refusal(gather, request(tmp_path))
    assert all(name in message for name in names)
    assert numbers(tmp_path, exclude=("labels/x*",)) == (5, 3, 0)


def test_two_values_of_one_structure_are_named_by_both_commands(tmp_path) -> None:
    make_folder(tmp_path)
    for n in (0, 3):
        volume(tmp_path / f"labels/c{n}.nii.gz", classes=(255,))
    shown: list[str] = []
    new_dataset(request(tmp_path, dry_run=True), MACHINE, shown.append)
    assert "1 (structure 1, 3 files) and 255 (structure 255, 2 files)" in shown[0]
    folder = CheckFolder(tmp_path / "check")
    for name in ("l0", "l1", "v0"):
        folder.save_label(name, folder.classes() // 2 * 5)  # 0 and 5, others 0, 1 and 2
    found = folder.check(label_names=["background", "organ", "vessel", "other"], label_values=[0, 1, 2, 5])
    assert ("values never together", "") in found


@pytest.mark.parametrize(
    "name", ["case {n}/{organ}.nii.gz", "labels/{organ}/c{n}.nii.gz", "labels_{organ}/c{n}.nii.gz"]
)
def test_labels_that_may_be_of_different_structures_are_mentioned(name, tmp_path, run) -> None:
    folder = make_folder(tmp_path / "data", labelled=6, unlabelled=0)
    for n in range(6):
        label = folder / name.format(n=n, organ="spleen" if n % 2 else "liver")
        label.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"labels/c{n}.nii.gz").rename(label)
        if "case" in name:
            (folder / f"images/c{n}.nii.gz").rename(label.with_name("ct.nii.gz"))
            label.rename(label.with_name(f"{label.name.split('.')[0]}_seg.nii.gz"))
    _, _, text = run(folder)
    assert "liver: 3 cases, spleen: 3 cases" in text


def test_labels_that_are_named_alike_or_after_their_cases_are_not_mentioned(tmp_path, run) -> None:
    for folder in (make_folder(tmp_path / "plain"), make_folder(tmp_path / "seg")):
        for label in (folder / "labels").iterdir() if folder.name == "seg" else ():
            label.rename(label.with_name(label.name.replace(".", "_seg.", 1)))
        _, _, text = run(folder, name=folder.name)
        assert "different names" not in text


def test_copies_of_images_are_mentioned(tmp_path, run) -> None:
    folder = make_folder(tmp_path / "data")
    (folder / "further").mkdir()
    shutil.copy(folder / "images/c0.nii.gz", folder / "images/renamed.nii.gz")
    _, _, text = run(folder)
    assert "copies" in text and "renamed.nii.gz (of " in text and "images/c0.nii.gz)" in text
