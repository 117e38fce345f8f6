# SPDX-License-Identifier: Apache-2.0
"""Every labelled case is held out once, and never trains the model that is evaluated on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.crossval.runs import find_patients, fold_datalist, make_folds
from scripts.data.datalist import load_cases
from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError


def cases(*names: str) -> list[dict[str, str]]:
    return [{"case": name, "image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"} for name in names]


def folds_of(found: list[dict[str, str]], number: int | None = None, pattern: str | None = None):
    return make_folds(found, find_patients(CaseLists(labelled=found), pattern), number)


def names(folds) -> list[list[str]]:
    return [[case["case"] for case in fold] for fold in folds]


def test_up_to_ten_cases_are_left_out_one_by_one_and_more_make_five_folds() -> None:
    ten = cases(*"abcdefghij")
    assert names(folds_of(ten)) == [[name] for name in "abcdefghij"]
    assert names(folds_of([*ten, *cases("k")])) == [list("afk"), list("bg"), list("ch"), list("di"), list("ej")]


def test_cases_of_a_patient_stay_together() -> None:
    folds = folds_of(cases("p1_a", "p2_a", "p1_b", "p3_a", "p2_b"), 2, pattern=r"^p\d")
    assert names(folds) == [["p1_a", "p1_b", "p3_a"], ["p2_a", "p2_b"]]


@pytest.mark.parametrize("number", [1, 4])
def test_a_number_of_folds_out_of_range_is_refused(number) -> None:
    with pytest.raises(UserError, match="folds"):
        folds_of(cases(*"abc"), number)


def test_a_single_patient_cannot_be_cross_validated() -> None:
    with pytest.raises(UserError, match="labelled_cases"):
        folds_of(cases("p1_a", "p1_b"), pattern=r"^p\d")


def test_the_held_out_case_is_in_no_other_list(tiny_demo: Path, tmp_path: Path) -> None:
    lists = load_cases(DatasetSpec(tiny_demo, labelled_cases=3))
    held_out = lists.labelled[1]
    (tmp_path / "fold.json").write_text(json.dumps(fold_datalist(lists, [held_out], find_patients(lists))))
    fold = load_cases(DatasetSpec(tiny_demo, str(tmp_path / "fold.json"), labelled_cases=2))
    assert fold.test == [held_out]
    assert fold.labelled == [lists.labelled[0], lists.labelled[2]]
    assert fold.unlabelled == lists.unlabelled
    assert fold.validation == []


def test_a_case_of_two_channels_keeps_both(tmp_path: Path) -> None:
    lists = CaseLists(labelled=[{"case": "a", "image": ["t1.nii", "t2.nii"], "label": "l.nii"}, *cases("b")])
    (entry,) = fold_datalist(lists, lists.labelled[1:], find_patients(lists))["training"]
    assert entry["image"] == [str(Path("t1.nii").absolute()), str(Path("t2.nii").absolute())]


def test_no_image_of_a_held_out_patient_trains() -> None:
    unlabelled = [{"case": name, "image": f"{name}.nii.gz"} for name in ("p1_c", "p2_b", "p4_a")]
    lists = CaseLists(labelled=cases("p1_a", "p2_a", "p3_a"), unlabelled=unlabelled)
    patient = find_patients(lists, r"^p\d")
    fold = fold_datalist(lists, lists.labelled[:1], patient)
    assert [[case["case"] for case in fold[part]] for part in ("training", "unlabeled", "test")] == [
        ["p2_a", "p3_a"], ["p2_b", "p4_a"], ["p1_a"],
    ]  # fmt: skip
