# SPDX-License-Identifier: Apache-2.0
"""Each warning appears where its cause is, and names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.images.write import write_volume
from scripts.report.advice import advice, compare_with_training
from scripts.report.cases import ReportCase, StructureMeasures, find_cases
from scripts.report.record import existing_json
from tests.report.output_folder import write_evaluation

FINE = StructureMeasures(1.0, 1.0, False, 1)


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[Path, list[ReportCase]]:
    folder = write_evaluation(tmp_path / "out", [f"case {n}" for n in range(6)])
    return folder, find_cases(folder)


def sentences(folder: Path, cases, measured=None, training=None) -> list[str]:
    return list(advice(existing_json(folder / "summary.json"), cases, measured or {}, training))


def test_a_good_evaluation_has_no_warning(evaluated) -> None:
    folder, cases = evaluated
    training = compare_with_training([cases[0].image], [])
    assert not sentences(folder, cases, {case.name: {"organ": FINE} for case in cases}, training)


def test_an_image_of_training_is_found_under_another_name_and_format(evaluated, tmp_path: Path) -> None:
    folder, cases = evaluated
    volume = nibabel.load(cases[2].image)
    copy, other = tmp_path / "renamed.nrrd", tmp_path / "other.nii.gz"
    write_volume(copy, np.asarray(volume.dataobj), volume.affine)
    write_volume(other, np.asarray(volume.dataobj) + 1, volume.affine)
    training = compare_with_training([str(tmp_path / "gone.nii.gz"), str(copy), str(other)], cases)
    assert training["seen"] == [("case 2", str(copy))]
    (sentence,) = sentences(folder, cases, None, training)
    assert "case 2" in sentence and str(copy) in sentence


def test_few_cases_and_an_absent_structure_are_named(tmp_path: Path) -> None:
    few = write_evaluation(tmp_path / "few", ["a", "b"])
    assert ["organ" in sentence and "6" in sentence for sentence in sentences(few, find_cases(few))] == [True]
    empty = write_evaluation(tmp_path / "empty", [f"case {n}" for n in range(8)], empty_references=True)
    (sentence,) = sentences(empty, find_cases(empty))
    assert "organ" in sentence and "8 of 8" in sentence


def test_border_and_parts_name_cases_and_structures(evaluated) -> None:
    folder, cases = evaluated
    measured = {f"c{n}": {"organ": StructureMeasures(1.0, 1.0, True, 1)} for n in range(7)}
    measured["split"] = {"organ": StructureMeasures(1.0, 1.0, False, 3)}
    border, parts = sentences(folder, cases, measured)
    assert "c0 (organ)" in border and "2 more" in border and "c5" not in border
    assert "split (organ: 3)" in parts


def test_a_spacing_outside_training_is_named(evaluated, tmp_path: Path) -> None:
    folder, cases = evaluated
    path = shutil.copy(cases[0].image, tmp_path / "train.nii.gz")
    training = compare_with_training([str(path)], [])
    affine = np.diag([1.5, 1.0, 5.0, 1.0])
    write_volume(tmp_path / "thick.nii.gz", np.zeros((4, 4, 4), np.float32), affine)
    (sentence,) = sentences(folder, [ReportCase("thick", str(tmp_path / "thick.nii.gz"))], None, training)
    assert "thick" in sentence and "5 mm" in sentence and "1.5 mm" not in sentence
