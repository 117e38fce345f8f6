# SPDX-License-Identifier: Apache-2.0
"""The report of MONAI's evaluator, on volumes with known metrics."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose

from scripts.errors import UserError
from scripts.evaluation import report as metric_report
from scripts.evaluation.metrics import METRICS
from scripts.evaluation.report import SegmentationReport, case_names, format_summary, write_report
from scripts.evaluation.statistics import COLUMNS, summarise
from scripts.inference.alarms import AddConfidenced

NAMES = {0: "background", 1: "liver", 2: "spleen"}
SPACING = (0.5, 1.0, 3.0)


class Onehot(torch.nn.Module):
    """Network whose most probable class is the value of the image."""

    def forward(self, image):
        return torch.cat([image == k for k in range(3)], dim=1).float()


def volume(voxels, path, shape=(4, 5, 6), spacing=SPACING):
    data = torch.zeros(1, *shape)
    for voxel, value in voxels.items():
        data[(0, *voxel)] = value
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(data, affine=affine, meta={"filename_or_obj": path} if path else None)


def item(path, predicted, true, **others):
    """An item of a loader for one case, for which the stub network predicts `predicted`."""
    return {"image": volume(predicted, path, **others), "label": volume(true, None, **others)}


def evaluate(items, handler, batch_size=1, before=(), **options):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=batch_size, num_workers=0),
        network=Onehot(),
        postprocessing=Compose([*before, AsDiscreted(keys="pred", argmax=True)]),
        val_handlers=[handler],
        **options,
    )
    evaluator.run()
    return evaluator


def read_csv(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TWO_CASES = [
    item("/d/p1/one.nii.gz", {(0, 0, 0): 1, (1, 1, 1): 2}, {(2, 0, 0): 1, (1, 1, 1): 2}),
    item("/d/p1/two.nii.gz", {(0, 0, 0): 1}, {(0, 0, 2): 1}),
]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_cases_give_four_rows_and_a_summary(tmp_path, batch_size):
    evaluator = evaluate(TWO_CASES, SegmentationReport(NAMES, tmp_path), batch_size)
    rows = read_csv(tmp_path)
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["case"], r["class"], r["label"], r["status"]) for r in rows] == [
        ("one", "liver", "1", "found"),
        ("one", "spleen", "2", "found"),
        ("two", "liver", "1", "found"),
        ("two", "spleen", "2", "absent"),
    ]
    # Two voxels apart along D (0.5 mm each) in the first case, along W (3 mm each) in the second.
    assert [float(r["hd95_voxel"]) for r in rows[:3]] == pytest.approx([2, 0, 2])
    assert [float(r["hd95_mm"]) for r in rows[:3]] == pytest.approx([1, 0, 6])
    assert [rows[3][c] for c in COLUMNS[3:-1]] == [""] * 7
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == evaluator.state.summary
    assert summary["mean_dice"] == pytest.approx((0 + 1) / 2)
    assert summary["mean_hd95_mm"] == pytest.approx(((1 + 6) / 2 + 0) / 2)
    assert summary["num_cases"] == 2


def test_confidence_is_a_last_column_where_the_output_has_it(tmp_path):
    evaluate(TWO_CASES, SegmentationReport(NAMES, tmp_path), before=[AddConfidenced("pred")])
    rows = read_csv(tmp_path)
    assert list(rows[0]) == [*COLUMNS, "confidence"]
    assert [float(row["confidence"]) for row in rows] == [1.0, 1.0, 1.0, 0.0]  # the stub is certain; no spleen in two


def test_spacing_is_the_length_of_the_affine_columns_of_each_case(tmp_path):
    turned = item("/d/a.nii", {(0, 0, 0): 1}, {(0, 1, 0): 1})
    # A rotated grid: the second axis runs along (0, 3, 4), so one step is 5 mm.
    affine = torch.tensor([[-2.0, 0, 0, 7], [0, 3, -4, 7], [0, 4, 3, 7], [0, 0, 0, 1]], dtype=torch.float64)
    turned["label"].affine = affine
    plain = item("/d/b.nii", {(0, 0, 0): 1}, {(0, 1, 0): 1})
    evaluate([turned, plain], SegmentationReport({1: "liver"}, tmp_path))
    assert [float(r["hd95_mm"]) for r in read_csv(tmp_path)] == pytest.approx([5, 1])


@pytest.mark.parametrize(("tolerance", "expected"), [(0.5, 0.0), (3.0, 1.0)])
def test_tolerance_decides_about_surface_dice_and_is_in_the_summary(tmp_path, tolerance, expected):
    shifted = item("/d/a.nii", {(0, 0, 0): 1}, {(0, 0, 1): 1})  # by 3 mm
    report = SegmentationReport({1: "liver"}, tmp_path, surface_tolerance_mm=tolerance)
    summary = evaluate([shifted], report).state.summary
    assert (summary["mean_surface_dice"], summary["surface_tolerance_mm"]) == (expected, tolerance)
    assert float(read_csv(tmp_path)[0]["surface_dice"]) == expected


def test_missed_structure_counts_as_the_diagonal_of_its_volume(tmp_path):
    missed = item("/d/a.nii", {}, {(0, 0, 0): 1}, shape=(3, 4, 12), spacing=(1, 1, 1))
    summary = evaluate([missed], SegmentationReport({1: "liver"}, tmp_path)).state.summary
    assert (summary["missed"], summary["mean_dice"]) == (1, 0)
    assert summary["mean_hd95_mm"] == pytest.approx(13)


def test_cases_of_the_same_file_name_get_their_folder(tmp_path):
    cases = [item(f"/d/{p}/mri.h5", {(0, 0, 0): 1}, {(0, 0, 0): 1}) for p in ("p1", "p2")]
    summary = evaluate(cases, SegmentationReport({1: "liver"}, tmp_path)).state.summary
    assert [r["case"] for r in read_csv(tmp_path)] == ["p1/mri", "p2/mri"]
    assert summary["num_cases"] == 2


def test_case_without_an_image_file_is_named_after_its_label_or_number(tmp_path):
    cases = [item(None, {(0, 0, 0): 1}, {(0, 0, 0): 1}) for _ in range(2)]
    evaluate(cases, SegmentationReport({1: "liver"}, tmp_path))
    assert [r["case"] for r in read_csv(tmp_path)] == ["case_1", "case_2"]
    cases[0]["label"].meta["filename_or_obj"] = "/d/truth.nii.gz"
    evaluate(cases[:1], SegmentationReport({1: "liver"}, tmp_path))
    assert [r["case"] for r in read_csv(tmp_path)] == ["truth"]


def test_second_run_starts_with_no_rows(tmp_path):
    evaluator = evaluate(TWO_CASES, SegmentationReport(NAMES, tmp_path))
    evaluator.run()
    assert len(read_csv(tmp_path)) == 4


def test_table_is_logged_once_under_the_name_of_the_handler(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="SegmentationReport"):
        evaluate(TWO_CASES, SegmentationReport(NAMES, tmp_path))
    messages = [r.getMessage() for r in caplog.records if r.name == "SegmentationReport"]
    assert len(messages) == 1
    assert "liver" in messages[0] and "spleen" in messages[0] and "2 cases" in messages[0]


def test_extra_is_added_to_the_summary(tmp_path):
    report = SegmentationReport(NAMES, tmp_path / "new" / "folder", extra={"checkpoint": "model.pt"})
    summary = evaluate(TWO_CASES, report).state.summary
    assert summary["checkpoint"] == "model.pt"
    assert json.loads((tmp_path / "new" / "folder" / "summary.json").read_text()) == summary


def test_probabilities_and_batches_that_are_not_decollated_are_refused(tmp_path):
    report = SegmentationReport(NAMES, tmp_path)
    with pytest.raises(ValueError, match=r"engine\.state\.output.*dict"):
        evaluate(TWO_CASES, report, decollate=False)
    evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(TWO_CASES), Onehot(), val_handlers=[report])
    with pytest.raises(ValueError, match=r"pred.*\(3, 4, 5, 6\)"):
        evaluator.run()


def test_label_without_spacing_is_refused(tmp_path):
    case = {"image": TWO_CASES[0]["image"], "label": TWO_CASES[0]["label"].as_tensor()}
    with pytest.raises(ValueError, match=r"label.* Tensor"):
        evaluate([case], SegmentationReport(NAMES, tmp_path))


def test_wrong_label_names_are_refused_before_a_run(tmp_path):
    with pytest.raises(ValueError, match="label_names"):
        SegmentationReport({0: "background"}, tmp_path)


def test_cases_of_all_ranks_are_joined_and_repeated_ones_dropped(monkeypatch):
    def row(dice):
        return [{"label": 1, "dice": dice}]

    def gather(gathered, mine):
        gathered[:] = [mine, [("/d/b.nii", row(0.2)), ("/d/a.nii", row(0.1))]]

    monkeypatch.setattr(metric_report.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(metric_report.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(metric_report.distributed, "all_gather_object", gather)
    joined = metric_report._of_all_processes([("/d/a.nii", row(0.1))])
    assert joined == [("/d/a.nii", row(0.1)), ("/d/b.nii", row(0.2))]


def found_row(**others):
    values = dict.fromkeys(METRICS, 0.5)
    return {"case": "a", "class": "liver", "label": 1, **values, "status": "found", **others}


def test_csv_keeps_commas_in_names_and_all_digits(tmp_path):
    write_report([found_row(case="a, b", dice=1 / 3, hd95_mm=math.nan)], {1: "liver"}, tmp_path)
    (row,) = read_csv(tmp_path)
    assert row["case"] == "a, b" and float(row["dice"]) == 1 / 3 and row["hd95_mm"] == ""


def test_invalid_extra_leaves_the_earlier_report_unchanged(tmp_path):
    write_report([found_row()], {1: "liver"}, tmp_path)
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"extra.*mean_dice"):
        write_report([], {1: "liver"}, tmp_path, extra={"mean_dice": 1})
    with pytest.raises(ValueError):
        write_report([], {1: "liver"}, tmp_path, extra={"loss": math.nan})
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_failed_write_leaves_the_earlier_report_and_no_temporary_file(tmp_path, monkeypatch):
    write_report([found_row()], {1: "liver"}, tmp_path)
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}

    def full_disk(source, target):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        write_report([found_row(dice=0.9)], {1: "liver"}, tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def row(label, status, dice):
    values = dict.fromkeys(METRICS, dice)
    return {"case": "a", "class": NAMES[label], "label": label, **values, "status": status}


def test_table_is_aligned_and_shows_nulls_as_dashes():
    table = format_summary(summarise([row(1, "found", 0.8765), row(2, "absent", math.nan)], NAMES)).splitlines()
    head, liver, spleen, rule, mean, convention, interval_note = table
    assert len({len(line) for line in (head, liver, spleen, rule, mean)}) == 1
    assert liver.split()[:3] == ["liver", "1", "0.8765"]
    assert spleen.split() == ["spleen", "0", *["-"] * 9, "0", "0"]
    assert mean.split()[:4] == ["mean", "1", "0.8765", "-"]
    assert "diagonal" in convention and "6 cases" in interval_note


def test_table_shows_the_interval_and_the_tolerance():
    rows = [row(1, "found", 0.5) | {"case": str(case)} for case in range(6)]
    table = format_summary(summarise(rows, {1: "liver"}) | {"surface_tolerance_mm": 2.5}).splitlines()
    assert "0.500 to 0.500" in table[1] and "2.5 mm" in table[-1]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/case_01.nii.gz", "/d/case_02.nii"], ["case_01", "case_02"]),
        (["a.b.1.nrrd", "B.NII.GZ", "folder/series.1.2"], ["a.b.1", "B", "series.1.2"]),
        (["/d/p1/mri.h5", "/d/p2/mri.h5", "/d/p3/other.h5"], ["p1/mri", "p2/mri", "other"]),
        (["/x/p1/mri.h5", "/y/p1/mri.h5", "/x/p2/mri.h5"], ["x/p1/mri", "y/p1/mri", "p2/mri"]),
        (["/d/mri.h5", "/d/mri.nii"], ["/d/mri", "/d/mri#2"]),
        (["mri.h5", "mri.h5"], ["mri", "mri#2"]),
        ([], []),
    ],
)
def test_case_name_is_the_file_name_with_folders_only_where_needed(paths, names):
    assert case_names(paths) == names
