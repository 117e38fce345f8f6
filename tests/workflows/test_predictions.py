# SPDX-License-Identifier: Apache-2.0
"""configs/predictions.yaml: label volumes of any program are evaluated without a network, as a network's are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import UserError, root_user_error
from scripts.files import csv_rows
from scripts.images.read import read_volume
from tests.volume_files import save, stored_as

NAMES = ["background", "liver", "left kidney"]
SHAPE, AFFINE = (9, 8, 7), np.array([[1.0, 0, 0, 5], [0, 1.5, 0, -3], [0, 0, 2.0, 1], [0, 0, 0, 1]])


def reference() -> np.ndarray:
    classes = np.zeros(SHAPE, np.uint8)
    classes[1:5, 2:6, 1:5], classes[6:8, 2:6, 1:5] = 1, 2
    return classes


def predicted() -> np.ndarray:
    """The liver is one plane too short: Dice 2 * 48 / (48 + 64); the kidney is exact."""
    classes = reference()
    classes[1, classes[1] == 1] = 0
    return classes


@pytest.fixture
def evaluate(make_workflow, tmp_path: Path) -> Callable[..., dict]:
    """Evaluates the folder `predicted` against the two test cases `a` and `b`; returns the rows by case and class."""
    for name in "ab":
        save(tmp_path / f"data/images/{name}.nii.gz", np.zeros(SHAPE, np.float32), AFFINE)
        save(tmp_path / f"data/labels/{name}.nii.gz", reference(), AFFINE)
    cases = [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in "ab"]
    (tmp_path / "data/dataset.json").write_text(json.dumps({"training": cases[:1], "test": cases[1:]}))
    (tmp_path / "predicted").mkdir()

    def run(**overrides: object) -> dict:
        settings = {
            "predictions": str(tmp_path / "predicted"),
            "dataset_dir": str(tmp_path / "data"),
            "ckpt_dir": str(tmp_path / "no_models"),
            "label_names": NAMES,
            "labelled_cases": None,
            "test_cases": "$@cases.labelled + @cases.test",
        }
        try:
            make_workflow("train.yaml", "predictions.yaml", run_id="evaluating", **{**settings, **overrides}).run()
        except Exception as error:
            raise root_user_error(error) or error from None
        return {(row["case"], row["class"]): row for row in csv_rows(tmp_path / "out/metrics.csv")}

    return run


LIVER = 2 * 48 / (48 + 64)


def check(rows: dict) -> None:
    assert {key: float(row["dice"]) for key, row in rows.items()} == pytest.approx(
        {("a", "liver"): LIVER, ("a", "left kidney"): 1.0, ("b", "liver"): LIVER, ("b", "left kidney"): 1.0}
    )
    assert float(rows["a", "liver"]["hd95_mm"]) == 1.0  # the plane is missing along the first axis
    assert float(rows["a", "left kidney"]["hd95_mm"]) == 0.0


@pytest.mark.parametrize("name", ["{}.nii.gz", "{}_seg.nii.gz", "{}.nrrd", "{}.mha"])
def test_files_of_any_format_are_compared_with_the_references(name, evaluate, tmp_path) -> None:
    for case in "ab":
        save(tmp_path / "predicted" / name.format(case), predicted(), AFFINE)
    (tmp_path / "predicted/volumes.csv").touch()
    check(evaluate())
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["mean_dice"] == pytest.approx((LIVER + 1) / 2)
    assert summary["predictions"] == str(tmp_path / "predicted") and summary["surface_tolerance_mm"] == 4.0


def test_axes_in_another_order_are_the_same_grid(evaluate, tmp_path) -> None:
    for case in "ab":
        save(tmp_path / f"predicted/{case}.nii.gz", *stored_as(predicted(), AFFINE, "PIR"))
    check(evaluate())


def test_a_reference_or_prediction_that_is_cut_to_its_painted_part_is_placed_by_its_offset(evaluate, tmp_path) -> None:
    def cut(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = AFFINE.copy()
        moved[:3, 3] = AFFINE[:3, :3] @ (1, 2, 1) + AFFINE[:3, 3]
        return classes[1:8, 2:6, 1:5], moved

    save(tmp_path / "data/labels/a.nii.gz", *cut(reference()))
    save(tmp_path / "predicted/a.nii.gz", predicted(), AFFINE)
    save(tmp_path / "predicted/b.nii.gz", *cut(predicted()))
    check(evaluate())


def test_a_folder_of_masks_per_case_is_read_by_the_names_of_the_structures(evaluate, tmp_path) -> None:
    for case in "ab":
        for index, name in ((1, "liver"), (2, "left_kidney")):
            save(tmp_path / f"predicted/{case}/{name}.nii.gz", (predicted() == index).astype(np.uint8), AFFINE)
        save(tmp_path / f"predicted/{case}/spleen.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
    check(evaluate())


def test_values_of_another_program_are_named_and_others_are_background(evaluate, tmp_path) -> None:
    values = np.array([0, 5, 3], np.uint8)[predicted()]
    values[0] = 77
    for case in "ab":
        save(tmp_path / f"predicted/{case}.nii.gz", values, AFFINE)
    check(evaluate(prediction_values=[0, 5, 3]))


def test_values_that_are_one_class_are_merged(evaluate, tmp_path) -> None:
    parts = np.where(predicted() == 1, np.where(np.indices(SHAPE)[2] % 2, 6, 5), predicted())
    for case in "ab":
        save(tmp_path / f"predicted/{case}.nii.gz", parts.astype(np.uint8), AFFINE)
    check(evaluate(prediction_values=[0, [5, 6], 2]))


def test_regions_are_reported_instead_of_classes(evaluate, tmp_path) -> None:
    for case in "ab":
        save(tmp_path / f"predicted/{case}.nii.gz", predicted(), AFFINE)
    rows = evaluate(regions={"abdomen": ["liver", "left kidney"]})
    assert [float(row["dice"]) for row in rows.values()] == pytest.approx([2 * 80 / (80 + 96)] * 2)
    assert set(rows) == {("a", "abdomen"), ("b", "abdomen")}


def test_the_largest_component_alone_may_be_kept(evaluate, tmp_path) -> None:
    scattered = predicted()
    scattered[8, 7, 6] = 1
    for case in "ab":
        save(tmp_path / f"predicted/{case}.nii.gz", scattered, AFFINE)
    check(evaluate(largest_component=["liver"]))
    assert float(evaluate()["a", "liver"]["dice"]) == pytest.approx(2 * 48 / (49 + 64))


def test_ignored_voxels_count_on_neither_side(evaluate, tmp_path) -> None:
    for case in "ab":
        partly = reference()
        partly[1, partly[1] == 1] = 9  # where the prediction is wrong
        save(tmp_path / f"data/labels/{case}.nii.gz", partly, AFFINE)
        save(tmp_path / f"predicted/{case}.nii.gz", predicted(), AFFINE)
    rows = evaluate(ignore_value=9)
    assert {float(row["dice"]) for row in rows.values()} == {1.0}


def other_value(folder: Path) -> None:
    save(folder / "b.nii.gz", np.full(SHAPE, 7, np.uint8), AFFINE)


def other_size(folder: Path) -> None:
    save(folder / "b.nii.gz", predicted()[1:], AFFINE)


def other_place(folder: Path) -> None:
    save(folder / "b.nii.gz", predicted(), np.diag([1, 1, 1, 1.0]))


def two_files(folder: Path) -> None:
    save(folder / "b.nii.gz", predicted(), AFFINE)
    save(folder / "b_seg.nrrd", predicted(), AFFINE)


def no_file(folder: Path) -> None:
    save(folder / "c.nii.gz", predicted(), AFFINE)


def a_mask_is_missing(folder: Path) -> None:
    save(folder / "b/liver.nii.gz", predicted(), AFFINE)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (other_value, ["b.nii.gz", " 7", "--prediction_values"]),
        (other_size, ["predicted/b.nii.gz", "labels/b.nii.gz", "8 x 8 x 7"]),
        (other_place, ["predicted/b.nii.gz", "labels/b.nii.gz"]),
        (two_files, ["b.nii.gz", "b_seg.nrrd"]),
        (no_file, ["no prediction of b", "1 of 2"]),
        (a_mask_is_missing, ["predicted/b", "left kidney"]),
    ],
)
def test_a_wrong_prediction_is_named(wrong, named, evaluate, tmp_path) -> None:
    save(tmp_path / "predicted/a.nii.gz", predicted(), AFFINE)
    wrong(tmp_path / "predicted")
    with pytest.raises(UserError) as caught:
        evaluate()
    assert all(text in str(caught.value) for text in named)


def test_a_missing_folder_is_named(evaluate) -> None:
    with pytest.raises(UserError, match="nowhere"):
        evaluate(predictions="nowhere")
    with pytest.raises(UserError, match="--predictions"):
        evaluate(predictions=None)


def test_what_a_network_predicts_has_the_same_metrics_as_its_files(make_workflow, trained, tiny_demo, tmp_path) -> None:
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", largest_component=True).run()
    rows = (tmp_path / "out/metrics.csv").read_text().splitlines()
    expected = [row.rpartition(",")[0] for row in rows]  # files of labels have no confidence, the last column
    images = [entry["image"] for entry in json.loads((tiny_demo / "dataset.json").read_text())["test"]]
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=[str(tiny_demo / image) for image in images],
        output_dir=str(tmp_path / "masks"),
        ckpt_dir=str(tmp_path / "models"),
        spacing=[3.0, 3.0, 4.0],
        roi_size=[32, 32, 16],
    ).run()
    make_workflow(
        *("train.yaml", "predictions.yaml"),
        run_id="evaluating",
        predictions=str(tmp_path / "masks"),
        largest_component=True,
        output_dir=str(tmp_path / "again"),
    ).run()
    assert (tmp_path / "again/metrics.csv").read_text().splitlines() == expected
    assert read_volume(tmp_path / f"masks/{Path(images[0]).name.split('.')[0]}_seg.nii.gz")[1].any()
