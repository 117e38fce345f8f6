# SPDX-License-Identifier: Apache-2.0
"""Cases of one patient are recognised by their names and stay on one side of a split."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from scripts.crossval.runs import find_patients, make_folds
from scripts.data.patients import guess_patients, possible_patients
from scripts.data.spec import CaseLists
from scripts.dataset_setup.roles import Request, assign, gather
from tests.check_folder import CheckFolder
from tests.scan_folder import make_folder, volume

VISITS = {
    "the last digits": [(f"st_{p:02d}{v:02d}", f"Tr/st_{p:02d}{v:02d}_0000.nii") for p in range(5) for v in range(3)],
    "one last digit": [(f"K{p:03d}{v}", f"K{p:03d}{v}.nii") for p in (3, 8, 17, 40) for v in (1, 2)],
    "a word behind": [(f"patient{p:03d}_frame{v:02d}", f"x/{p}.{v}.nii") for p in range(4) for v in (1, 12)],
    "several separators": [(f"BraTS-GLI-{p:05d}-{v:03d}", f"x/{p}{v}.nii") for p in range(4) for v in range(2)],
    "folders": [(f"p{p}_scan{v}", f"data/images/anna_{p}/scan{v}.nii") for p in range(4) for v in "ab"],
    "folders of folders": [(f"{p}{v}x", f"data/A{p}/day {v}/ct.nii") for p in "abcd" for v in (1, 2)],
    "a side behind": [(f"{p:03d}{side}", f"{p:03d}{side}.nii") for p in range(4) for side in "LR"],
    "other capitals": [(f"{w}{p:02d}{v}", f"{w}{p}{v}.nii") for p in range(4) for w, v in (("Pat", "a"), ("pat", "b"))],
    "a visit in front": [(f"T{v}-sub{p:02d}", f"T{v}-sub{p:02d}.nii") for p in range(4) for v in (0, 1)],
    "BIDS": [(f"sub-{p}_T{v}w", f"sub-{p}/anat/sub-{p}_T{v}w.nii") for p in ("01", "x2", "3") for v in (1, 2)],
}
NONE = {
    "plain numbers": [(f"case_{n:03d}", f"images/case_{n:03d}.nii") for n in range(35)],
    "numbers with gaps": [(f"hippocampus_{n:03d}", f"h_{n:03d}.nii") for n in (1, 3, 4, 6, 7, 8, 11, 14, 17)],
    "a year in front": [(f"BraTS2021_{n:05d}", f"x/{n}.nii") for n in range(30)],
    "sites in folders": [(f"{s}{n}", f"data/site_{s}/c{n}.nii") for s, n in product("abc", range(10))],
    "sites in names": [(f"site{s}_{n:03d}", f"{s}{n}.nii") for s, n in product(range(3), range(10))],
    **{
        f"{word} and a number": [(f"{word}{n:03d}", f"images/{word}{n:03d}.nii") for n in range(1, count + 1)]
        for word, count in (("patient", 12), ("sub-", 10), ("Patient_", 100))
    },
    "UIDs": [(f"1.2.840.{n}", f"x/1.2.840.{n}") for n in range(9)],
    "one folder each": [(f"p{n}", f"p{n}/imaging.nii") for n in range(6)],
    "no case": [],
}


@pytest.mark.parametrize("cases", VISITS.values(), ids=VISITS)
def test_cases_of_one_patient_are_together_and_a_sentence_says_so(cases) -> None:
    patients, sentence = guess_patients(cases)
    groups: dict[str, list[str]] = {}
    for name, _ in cases:
        groups.setdefault(patients[name], []).append(name)
    size = 3 if len(cases) == 15 else 2
    assert list(groups.values()) == [[name for name, _ in cases[i : i + size]] for i in range(0, len(cases), size)]
    assert f"{len(groups)} patients" in sentence and ", ".join(groups[patients[cases[0][0]]]) in sentence


@pytest.mark.parametrize("cases", NONE.values(), ids=NONE)
def test_numbers_years_and_sites_are_no_patients(cases) -> None:
    assert guess_patients(cases) == ({}, "")


LARGE = {
    "patient": [(f"patient{p:03d}_frame{v:02d}", f"x/{p}.{v}.nii") for p in range(5) for v in range(8)],
    "patient and a number": [(f"Subj_{p}-{v}", f"x/{p}.{v}.nii") for p in range(2) for v in range(8)],
    "visit": [(f"knee{p}_visit{v}", f"x/{p}.{v}.nii") for p in range(4) for v in range(8)],
    "folders": [(f"patient{p}_{v}", f"x/patient{p}/{v}.nii") for p in range(3) for v in range(8)],
    "folders of visits": [(f"K{p}_{v}", f"x/K{p}/day {v}/ct.nii") for p in range(3) for v in range(8)],
    "BIDS": [(f"sub-{p}_run-{v}_bold", f"sub-{p}/sub-{p}_run-{v}_bold.nii") for p in "ab" for v in range(8)],
}


@pytest.mark.parametrize("cases", LARGE.values(), ids=LARGE)
def test_large_groups_are_patients_if_a_word_says_so(cases) -> None:
    patients, sentence = guess_patients(cases)
    groups = [{patients[name] for name, _ in cases[i : i + 8]} for i in range(0, len(cases), 8)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == len(groups)
    assert f"{len(groups)} patients" in sentence and cases[3][0] in sentence and cases[4][0] not in sentence
    assert possible_patients(cases) == {}


@pytest.mark.parametrize("name", ["knee{:02d}_{:02d}", "P{}-img{}", "mouse_A{}_region {}"])
def test_other_large_groups_are_mentioned(name) -> None:
    cases = [(name.format(p, v), f"x/{p}.{v}.nii") for p in range(5) for v in range(8)]
    patients, sentence = guess_patients(cases)
    assert patients == {} and "patient_pattern" in sentence and cases[0][0] in sentence
    groups = possible_patients(cases)
    assert [len({groups[name] for name, _ in cases[i : i + 8]}) for i in range(0, 40, 8)] == [1] * 5


def test_a_site_in_front_of_names_that_two_sites_share_is_no_patient() -> None:
    """`new-dataset` puts the folder in front of such names only; 004 exists once."""
    cases = [(f"site{s}_00{n}", f"data/site{s}/images/00{n}.nii") for s, n in product((1, 2), range(4))]
    assert guess_patients([*cases, ("004", "data/site2/images/004.nii")]) == ({}, "")


def test_patients_of_many_frames_are_split_as_a_whole(tmp_path) -> None:
    for patient, frame in product(range(5), range(6)):
        for kind, classes in (("images", None), ("labels", (1,))):
            volume(tmp_path / kind / f"patient{patient:03d}_frame{frame:02d}.nii.gz", classes=classes)
    roles = roles_of(tmp_path)
    assert len(roles.test) == 6 and len({case.name[:10] for case in roles.test}) == 1
    few = [path for path in (tmp_path / "labels").iterdir() if "patient002" not in path.name]
    for path in few:
        path.unlink()
    roles = roles_of(tmp_path)
    assert (len(roles.labelled), len(roles.test)) == (6, 0) and any("one patient" in note for note in roles.notes)


def roles_of(folder: Path, **options):
    request = Request(folder, "mine", **options)
    return assign(gather(request)[0], request)


@pytest.mark.parametrize("name", ["study_{:02d}{:02d}", "p{}_visit{}"])
def test_a_split_keeps_patients_together_by_default(name, tmp_path) -> None:
    for patient, visit in product(range(5), range(3)):
        file = f"{name.format(patient, visit)}.nii.gz"
        volume(tmp_path / "images" / file)
        if visit < 2:
            volume(tmp_path / "labels" / file, classes=(1,))
    roles = roles_of(tmp_path)
    tested = {case.name[:-1] for case in roles.test}
    assert len(roles.test) == 2 and len(tested) == 1
    assert not tested & {case.name[:-1] for case in roles.labelled + roles.unlabelled}
    assert len(roles.unlabelled) == 4
    assert any("5 patients" in note for note in roles.notes)
    every = roles_of(tmp_path, patient_pattern=".*")
    assert len({case.name[:-1] for case in every.test}) == 2, "the two lowest hashes are of two patients"
    labelled = [{"case": case.name, "image": case.images[0]} for case in roles.labelled + roles.test]
    folds = make_folds(labelled, find_patients(CaseLists(labelled=labelled)))
    assert [len({case["case"][:-1] for case in fold}) for fold in folds] == [1] * 5


def test_a_split_that_came_with_the_data_is_kept_and_the_check_names_the_patient(tmp_path) -> None:
    for patient, visit in product(range(4), range(2)):
        part = "Ts" if (patient, visit) == (1, 1) else "Tr"
        volume(tmp_path / f"images{part}/p{patient}_v{visit}.nii.gz")
        volume(tmp_path / f"labels{part}/p{patient}_v{visit}.nii.gz", classes=(1,))
    roles = roles_of(tmp_path)
    assert (len(roles.labelled), len(roles.test)) == (7, 1)
    assert any("p1_v0" in note for note in roles.notes)
    folder = CheckFolder(tmp_path / "check")
    for role, cases in folder.lists.items():
        for number, case in enumerate(cases):
            case["case"] = f"patient{number}_{role}"
    assert ("patient in train and test", "patient0_validation") in folder.check()


def test_names_of_cases_in_one_folder_are_cases_of_their_own(tmp_path) -> None:
    assert not roles_of(make_folder(tmp_path)).notes
