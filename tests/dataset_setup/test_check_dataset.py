# SPDX-License-Identifier: Apache-2.0
"""All cases are walked, and little is kept of each."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from scripts.data.checks import case as case_module
from scripts.data.spec import Case, CaseLists, DatasetSpec
from scripts.dataset_setup.check_data import check_dataset
from tests.check_folder import NAMES, CheckFolder
from tests.volume_files import affine, save


def quiet(items, _title):
    return items


def spec(side: int) -> DatasetSpec:
    return DatasetSpec("", label_names=NAMES, spacing=[1.5, 2.0, 2.5], roi_size=[side] * 3)


def test_nothing_of_an_unlabelled_case_is_opened_but_its_image(tmp_path, monkeypatch) -> None:
    folder = CheckFolder(tmp_path / "data")
    opened: list[str] = []
    open_volume = case_module.open_volume
    monkeypatch.setattr(case_module, "open_volume", lambda path: opened.append(str(path)) or open_volume(path))
    folder.run()
    assert {str(folder.image("u0")), str(folder.label("l0")), str(folder.label("t1"))} <= set(opened)
    assert not {str(folder.label("u0")), str(folder.label("u1"))} & set(opened)
    assert len(opened) == len(set(opened)), "a header is parsed once"


def test_every_case_passes_under_the_progress_bar(tmp_path) -> None:
    seen: list[tuple[str, int]] = []

    def count(items, title):
        items = list(items)
        seen.append((title, len(items)))
        return items

    image = str(save(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine()))
    lists = CaseLists(unlabelled=[{"image": image, "case": "a"}], test=[{"image": image, "case": "b"}])
    check_dataset(lists, spec(2), count)
    assert seen == [("reading headers", 2), ("reading voxels", 2)]


def traced_peak(cases: list[Case]) -> int:
    """Bytes; the interpreter's own tables grow now and then, by megabytes, in one of several measurements."""
    tracemalloc.start()
    lists = CaseLists(labelled=cases)
    found = check_dataset(lists, spec(16), quiet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == []
    return peak


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_three_times_the_cases_take_no_more_memory(tmp_path: Path, dtype) -> None:
    shape = (64, 64, 48)
    rng = np.random.default_rng(0)
    cases = []
    for number in range(12):
        image = save(tmp_path / f"{number}.nii", rng.integers(0, 99, shape).astype(dtype), affine())
        label = save(tmp_path / f"{number}_label.nii", rng.integers(0, 3, shape).astype(np.uint8), affine())
        cases.append({"image": str(image), "label": str(label), "case": str(number)})
    traced_peak(cases[:1])  # what is imported on first use is not counted
    few, many = (min(traced_peak(cases[:number]) for _ in range(2)) for number in (4, 12))
    assert many - few < 0.3 * np.prod(shape), "of eight cases more, not a third of one label is kept"


def test_labels_of_other_programs_are_findings_of_unlabelled_cases(tmp_path) -> None:
    folder = CheckFolder(tmp_path / "data")
    foreign = folder.root / "foreign_labels"
    for name in ("u0", "l0", "t0"):
        save(foreign / f"{name}.nii.gz", folder.classes() * (1 + (name == "u0")), affine())
    save(foreign / "u1.nii.gz", folder.classes()[2:], affine())
    assert folder.check() == set()  # they are not read
    found = folder.check(foreign_labels="foreign_labels")
    assert found == {("undeclared label value", "u0"), ("shapes differ", "u1"), ("label without image", "")}
    (alone,) = [row for row in folder.rows() if row["finding"] == "label without image"]
    assert alone["file"].endswith("t0.nii.gz") and alone["severity"] == "warning"
    save(foreign / "u1.nrrd", folder.classes(), affine())
    assert ("bad entry in datalist", "u1") in folder.check(foreign_labels="foreign_labels")
