# SPDX-License-Identifier: Apache-2.0
"""Every labelled case is held out once, and never trains the model that is evaluated on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.crossval.folds import fold_datalist, make_folds
from scripts.data.cases import CaseLists
from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError


def cases(*names: str) -> list[dict[str, str]]:
    return [{"case": name, "image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"} for name in names]


def names(folds) -> list[list[str]]:
    return [[case["case"] for case in fold] for fold in folds]


def test_up_to_ten_cases_are_left_out_one_by_one_and_more_make_five_folds() -> None:
    ten = cases(*"abcdefghij")
    assert names(make_folds(ten)) == [[name] for name in "abcdefghij"]
    assert names(make_folds([*ten, *cases("k")])) == [list("afk"), list("bg"), list("ch"), list("di"), list("ej")]


def test_cases_of_a_patient_stay_together() -> None:
    folds = make_folds(cases("p1_a", "p2_a", "p1_b", "p3_a", "p2_b"), 2, patient_pattern=r"^p\d")
    assert names(folds) == [["p1_a", "p1_b", "p3_a"], ["p2_a", "p2_b"]]


@pytest.mark.parametrize("number", [1, 4])
def test_a_number_of_folds_out_of_range_is_refused(number) -> None:
    with pytest.raises(UserError, match="folds"):
        make_folds(cases(*"abc"), number)


def test_a_single_patient_cannot_be_cross_validated() -> None:
    with pytest.raises(UserError, match="labelled_cases"):
        make_folds(cases("p1_a", "p1_b"), patient_pattern=r"^p\d")


def test_the_held_out_case_is_in_no_other_list(tiny_demo: Path, tmp_path: Path) -> None:
    lists = load_cases(DatasetSpec(tiny_demo, labelled_cases=3))
    held_out = lists.labelled[1]
    (tmp_path / "fold.json").write_text(json.dumps(fold_datalist(lists, [held_out])))
    fold = load_cases(DatasetSpec(tiny_demo, str(tmp_path / "fold.json"), labelled_cases=2))
    assert fold.test == [held_out]
    assert fold.labelled == [lists.labelled[0], lists.labelled[2]]
    assert fold.unlabelled == lists.unlabelled
    assert fold.validation == []


def test_a_case_of_two_channels_keeps_both(tmp_path: Path) -> None:
    lists = CaseLists(labelled=[{"case": "a", "image": ["t1.nii", "t2.nii"], "label": "l.nii"}, *cases("b")])
    (entry,) = fold_datalist(lists, lists.labelled[1:])["training"]
    assert entry["image"] == [str(Path("t1.nii").absolute()), str(Path("t2.nii").absolute())]
