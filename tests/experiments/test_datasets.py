# SPDX-License-Identifier: Apache-2.0
"""A datalist for tuning contains training cases only; reduced labels keep their slices and say nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError
from scripts.experiments.datasets import main, write_sparse_dataset
from scripts.files import csv_text
from scripts.images.read import read_volume
from scripts.images.write import write_volume


def test_labels_of_the_first_cases_are_reduced_and_the_other_cases_are_unlabelled(tiny_demo, tmp_path, capsys) -> None:
    main(["sparse", str(tiny_demo), "--output", str(tmp_path), "--cases", "2", "--slices", "3"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    original = json.loads((tiny_demo / "dataset.json").read_text())
    assert len(content["training"]) == 2
    assert len(content["unlabeled"]) == len(original["training"]) - 2 + len(original.get("unlabeled", []))
    assert not any("label" in entry for entry in content["unlabeled"])
    for entry, before in zip(content["training"], original["training"], strict=False):
        header, (sparse,) = read_volume(entry["label"])
        whole_header, (whole,) = read_volume(tiny_demo / before["label"])
        np.testing.assert_allclose(header.affine, whole_header.affine, atol=1e-5)
        kept = (sparse != 255).any(axis=(0, 1))
        assert kept.sum() == 3 and (sparse[..., ~kept] == 255).all()
        np.testing.assert_array_equal(sparse[..., kept], whole[..., kept])
    assert capsys.readouterr().out.count("slices") == 2
    names = ["background", "large organ", "small organ", "vessel"]
    cases = load_cases(DatasetSpec(tmp_path, label_names=names, ignore_value=255, labelled_cases=2))
    assert len(cases.labelled) == 2 and len(cases.test) == len(original["test"])


def test_a_value_that_a_label_has_cannot_mean_ignored(tiny_demo, tmp_path) -> None:
    with pytest.raises(UserError, match="ignore_value"):
        write_sparse_dataset(tiny_demo, "dataset.json", tmp_path, 1, 3, ignore_value=2)
    with pytest.raises(UserError, match=r"dataset\.json"):
        write_sparse_dataset(tiny_demo, "dataset.json", tmp_path, 99, 3, ignore_value=255)


def test_proposed_slices_of_the_least_confident_cases_get_the_true_labels(tiny_demo, tmp_path, capsys) -> None:
    entries = json.loads((tiny_demo / "dataset.json").read_text())["training"][:3]
    names, proposals, rows = [Path(entry["image"]).name for entry in entries], tmp_path / "proposals", []
    for name, entry in zip(names, entries, strict=True):
        header, (truth,) = read_volume(tiny_demo / entry["label"])
        proposal = np.full(truth.shape, 255, np.uint8)
        proposal[:, :, 4:6] = 1
        write_volume(proposals / name, proposal, header.affine)
        rows.append((name.split(".")[0], 0.5, name))
    (proposals / "confidence.csv").write_text(csv_text(("case", "confidence", "label"), [rows[2], rows[0], rows[1]]))
    out = tmp_path / "corrected"
    main(["corrected", str(tiny_demo), "--output", str(out), "--proposals", str(proposals), "--cases", "2"])
    assert sorted(path.name for path in out.iterdir()) == sorted([names[0], names[2]])
    for index in (0, 2):
        _, (label,) = read_volume(out / names[index])
        _, (truth,) = read_volume(tiny_demo / entries[index]["label"])
        np.testing.assert_array_equal(label[:, :, 4:6], truth[:, :, 4:6])
        assert (np.delete(label, [4, 5], axis=2) == 255).all()
    assert set(capsys.readouterr().out.split()) == {names[0], names[2]}


def test_the_list_has_no_test_case_and_keeps_the_order(tiny_demo, tmp_path) -> None:
    out = tmp_path / "dev.json"
    main(["held-out", str(tiny_demo), "--first", "3", "--hold_out", "2", "--output", str(out)])
    original, made = json.loads((tiny_demo / "dataset.json").read_text()), json.loads(out.read_text())
    expected = [str(tiny_demo.resolve() / case["image"]) for case in original["training"]]
    assert [case["image"] for case in made["training"]] == expected[:3]
    assert [case["image"] for case in made["test"]] == expected[3:5]


def test_too_many_cases_are_refused(tiny_demo, tmp_path) -> None:
    with pytest.raises(UserError, match=r"first.*hold_out.*6"):
        main(["held-out", str(tiny_demo), "--first", "5", "--hold_out", "2", "--output", str(tmp_path / "x.json")])


def test_faults_of_another_program(tiny_demo, tmp_path) -> None:
    cases = load_cases(DatasetSpec(tiny_demo)).labelled
    for fault in ("shifted", "missing", "swapped"):
        main(["faulty", str(tiny_demo), "--output", str(tmp_path / fault), "--fault", fault])
        assert sorted(path.name for path in (tmp_path / fault).iterdir()) == [f"{c['case']}.nii.gz" for c in cases]
    for index, case in enumerate(cases):
        header, (whole,) = read_volume(case["label"])
        found = {}
        for fault in ("shifted", "missing", "swapped"):
            faulty_header, (found[fault],) = read_volume(tmp_path / fault / f"{case['case']}.nii.gz")
            np.testing.assert_allclose(faulty_header.affine, header.affine, atol=1e-5)
        np.testing.assert_array_equal(found["shifted"][1:, 1:, 1:], whole[:-1, :-1, :-1])
        order = [0, 2, 1, 3] if index % 2 else [0, 1, 2, 3]
        np.testing.assert_array_equal(found["swapped"], np.array(order)[whole.astype(int)])
        np.testing.assert_array_equal(found["missing"], np.array([0, 1, 2, 0 if index % 2 else 3])[whole.astype(int)])
