# SPDX-License-Identifier: Apache-2.0
"""An unlabelled case with a corrected label file is used as a labelled case."""

from __future__ import annotations

import pytest

from scripts.data.checks.finding import Kind
from scripts.data.corrected_labels import unique_names, with_corrected_labels, with_foreign_labels
from scripts.data.spec import CaseLists
from scripts.errors import UserError
from tests.volume_files import touch


def cases(*names: str, label: bool = False) -> list[dict]:
    return [{"image": f"/d/{n}.nii.gz", "case": n} | ({"label": f"/l/{n}.nii.gz"} if label else {}) for n in names]


@pytest.fixture
def lists() -> CaseLists:
    return CaseLists(cases("a", label=True), cases("b", "c", "d"), cases("v", label=True), cases("t", label=True))


def test_cases_with_a_file_are_appended_to_the_labelled_ones(lists, tmp_path) -> None:
    found, findings = with_corrected_labels(lists, touch(tmp_path, "d.nrrd", "b.nii.gz", "b.json", ".x.nii.gz"))
    assert findings == []
    assert [(case["case"], case.get("label")) for case in found.labelled] == [
        ("a", "/l/a.nii.gz"), ("b", f"{tmp_path}/b.nii.gz"), ("d", f"{tmp_path}/d.nrrd"),
    ]  # fmt: skip
    assert found.unlabelled == cases("c")
    assert (found.validation, found.test) == (lists.validation, lists.test)


@pytest.mark.parametrize("name", ["c.seg.nrrd", "c.seg.nhdr", "c.nrrd", "c.mha"])
def test_a_segmentation_saved_by_3d_slicer_has_the_name_of_its_case(lists, tmp_path, name) -> None:
    found, findings = with_corrected_labels(lists, touch(tmp_path, name))
    assert findings == [] and found.labelled[-1] == {"image": "/d/c.nii.gz", "case": "c", "label": f"{tmp_path}/{name}"}


def test_a_case_that_is_itself_called_seg_keeps_its_name(tmp_path) -> None:
    lists = CaseLists(cases("a", label=True), cases("b", "b.seg"))
    found, findings = with_corrected_labels(lists, touch(tmp_path, "b.seg.nrrd"))
    assert findings == [] and [case["case"] for case in found.labelled] == ["a", "b.seg"]


@pytest.mark.parametrize("names", [["monday/d.nii.gz", "b.nii.gz"], ["anna/tuesday/d.seg.nrrd", "ben/b.nii.gz"]])
def test_files_in_subfolders_count_too(lists, tmp_path, names) -> None:
    touch(tmp_path, *names, ".old/c.nii.gz")
    given = [str(tmp_path / name) for name in names]
    found, findings = with_corrected_labels(lists, tmp_path)
    assert findings == [] and {case["label"] for case in found.labelled[1:]} == set(given)
    assert found.unlabelled == cases("c")
    found, findings = with_foreign_labels(lists, tmp_path)
    assert findings == [] and {case["label"] for case in found.unlabelled if "label" in case} == set(given)


@pytest.mark.parametrize("name", ["old/x.nii.gz", "new/b.nii.gz"])
def test_a_file_in_a_subfolder_is_refused_like_any_other(lists, tmp_path, name) -> None:
    _, (finding,) = with_corrected_labels(lists, touch(tmp_path, "old/b.nii.gz", name))
    assert finding.kind is Kind.BAD_ENTRY and "old" in finding.sentence


def test_a_file_in_the_folder_itself_comes_before_its_copy_in_a_subfolder(lists, tmp_path, caplog) -> None:
    found, findings = with_corrected_labels(lists, touch(tmp_path, "a_copy/b.nii.gz", "b.nii.gz", "later/c.nii.gz"))
    assert findings == []
    assert {case["label"] for case in found.labelled[1:]} == {
        str(tmp_path / "b.nii.gz"),
        str(tmp_path / "later/c.nii.gz"),
    }
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("a_copy" in sentence and "not used" in sentence for sentence in told)
    assert any("later" in sentence for sentence in told)


def test_without_files_nothing_changes(lists, tmp_path) -> None:
    assert with_corrected_labels(lists, tmp_path / "corrected_labels") == (lists, [])
    assert with_corrected_labels(lists, tmp_path) == (lists, [])


def test_a_folder_that_someone_named_must_exist(lists, tmp_path) -> None:
    with pytest.raises(UserError, match="corected_labels"):
        with_corrected_labels(lists, tmp_path / "corected_labels")


def test_a_file_for_a_case_with_a_label_is_ignored(lists, tmp_path) -> None:
    assert with_corrected_labels(lists, touch(tmp_path, "a.nii.gz", "v.nii.gz")) == (lists, [])


@pytest.mark.parametrize("name", ["b_seg.nii.gz", "b.seg.nii.gz", "x.seg.nrrd", "t.nii.gz", "B.nii.gz"])
def test_a_file_without_the_name_of_a_training_case_is_an_error(name, lists, tmp_path) -> None:
    _, (finding,) = with_corrected_labels(lists, touch(tmp_path, name))
    assert finding.kind is Kind.BAD_ENTRY and name in finding.sentence


def test_two_files_for_one_case_are_an_error(lists, tmp_path) -> None:
    _, (finding,) = with_corrected_labels(lists, touch(tmp_path, "b.nii.gz", "b.nrrd"))
    assert finding.kind is Kind.BAD_ENTRY and finding.case == "b"
    assert "b.nii.gz" in finding.sentence and "b.nrrd" in finding.sentence


def test_cases_with_equal_names_are_named_after_their_folders() -> None:
    same = [{"image": f"/d/p{n}/ct.nii.gz", "case": "ct"} for n in (1, 2)]
    assert unique_names([*same, *cases("b")]) == ["p1_ct", "p2_ct", "b"]
