# SPDX-License-Identifier: Apache-2.0
"""The report of an inference, and of what to label next; measures of structures by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import UserError
from scripts.files import csv_rows, csv_text
from scripts.images.write import write_volume
from scripts.inference.run import SegmentationWriter, infer
from scripts.inference.segmenter import ClassSums, Segmentation
from scripts.labelling.prioritise import COLUMNS
from scripts.report.cases import StructureMeasures, agreement, measure
from scripts.report.page import write_report
from scripts.report.pictures import CaseVolumes
from tests.report.output_folder import ball, rotated, write_evaluation
from tests.report.test_page import Page

SHAPE = (20, 18, 12)


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """The output folder of an inference of two images, the second of which failed."""
    classes = 2 * ball(SHAPE, (9, 14, 15), 7).astype(np.uint8)
    image = tmp_path / "images/first <1>.nii.gz"
    write_volume(image, 50.0 * (classes > 0).astype(np.float32), rotated())
    uncertainty = np.where(ball(SHAPE, (9, 14, 15), 4), 0.8, 0.0).astype(np.float32)

    def segmenter(path: str) -> Segmentation:
        if "second" in path:
            raise UserError("second.nii.gz is <damaged>.")
        names = ("background", "liver", "spleen")
        return Segmentation(path, rotated(), classes, ClassSums(3), names, uncertainty=uncertainty)

    writer = SegmentationWriter(tmp_path / "out", ["background", "liver", "spleen"], [0, 5, 7])
    with pytest.raises(UserError):
        infer([str(image), str(tmp_path / "images/second.nii.gz")], segmenter, writer)
    return tmp_path / "out"


def test_an_inference_shows_predictions_uncertainty_volumes_and_failures(predicted: Path) -> None:
    path = write_report(predicted)
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert [card["data-name"] for card in page.all("details") if "data-name" in card] == ["second", "first <1>"]
    assert "second.nii.gz is <damaged>." in page.words and "<damaged>" not in text
    assert len(page.all("image")) == 3
    kinds = {path["class"] for path in page.all("path") if "class" in path}
    assert {"line prediction s2", "area uncertain u75"} <= kinds and not any("reference" in kind for kind in kinds)
    shown = [float(cell["data-ml"]) for cell in page.all("td") if "data-ml" in cell]
    assert shown == pytest.approx([float(row["volume_ml"]) for row in csv_rows(predicted / "volumes.csv")], abs=0.001)
    assert not page.all("section", id="result") and not page.all("section", id="volumes")


def test_alarms_and_predicted_dice_of_an_inference_are_on_the_page(predicted: Path) -> None:
    sidecar = next(predicted.glob("*_seg.json"))
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    content |= {"predicted_dice": 0.625, "alarms": ["Voxel size along S 5 mm, trained on <1> mm."]}
    sidecar.write_text(json.dumps(content), encoding="utf-8")
    page = Page(write_report(predicted))
    assert "predicted Dice 0.625" in page.words and "Voxel size along S 5 mm, trained on <1> mm." in page.words
    assert any(sidecar.stem.removesuffix("_seg") in word and "alarms" in word for word in page.words)
    del content["predicted_dice"], content["alarms"]  # of an earlier version
    sidecar.write_text(json.dumps(content), encoding="utf-8")
    assert not any("predicted Dice" in word for word in Page(write_report(predicted)).words)


def test_what_to_label_next_is_in_the_order_of_its_table(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, ["a"], ["liver"])
    image = str(folder / "images/0.nii.gz")
    values = [("1", "b <2>", "0.5", "0.25", "0.75", "1", "1", "1"), ("2", "c", "0.4", "", "0.5", "2", "2", "2")]
    rows = [(*row, path) for row, path in zip(values, (image, str(tmp_path / "gone.nii.gz")), strict=True)]
    (folder / "prioritise_unlabelled.csv").write_text(csv_text(COLUMNS, rows))
    page = Page(write_report(folder))
    assert page.all("section", id="next") and len(page.all("image")) == 3 + 3
    text = " ".join(word for word in map(str.strip, page.words) if word)
    assert "b <2> 1 0.500 0.250 0.750" in text and text.index("b <2> 1") < text.index("c 2 0.400 \N{EN DASH} 0.500")
    assert any("gone.nii.gz" in word for word in page.words)
    # With a pseudo-label, its contours are drawn.
    (folder / "pseudo_labels").mkdir()
    shutil.copy(folder / "predictions/0_prediction.nii.gz", folder / "pseudo_labels/b <2>.nii.gz")
    sidecar = {"labels": {"0": "background", "1": "liver"}}
    (folder / "pseudo_labels/b <2>.json").write_text(json.dumps(sidecar))
    lines = [path for path in Page(write_report(folder)).all("path") if path.get("class") == "line prediction s1"]
    assert len(lines) == 3 + 3
    (folder / "prioritise_unlabelled.csv").write_text("priority\n1\n")
    with pytest.raises(UserError, match="prioritise_unlabelled"):
        write_report(folder)


def test_volumes_are_voxels_times_their_size() -> None:
    prediction, reference = (np.zeros((10, 10, 10), np.uint8) for _ in range(2))
    prediction[2:4, 2:5, 2:6], reference[2:4, 2:4, 2:4] = 2, 2  # 24 and 8 voxels of 3 mm3
    measured = measure(CaseVolumes((1.0, 1.5, 2.0), prediction, reference), ["a", "b"])
    assert measured["a"] == StructureMeasures(0.0, 0.0, False, 0)
    assert measured["b"].prediction_ml == pytest.approx(0.072) and measured["b"].reference_ml == pytest.approx(0.024)


def test_the_border_counts_if_only_the_prediction_reaches_it() -> None:
    prediction, reference = (np.zeros((6, 6, 6), np.uint8) for _ in range(2))
    prediction[3:, 2:4, 2:4] = 1
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].at_border
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction, reference), ["a"])["a"].at_border
    reference[4:, 2:4, 2:4] = 1
    assert not measure(CaseVolumes((1.0, 1.0, 1.0), prediction, reference), ["a"])["a"].at_border
    assert not measure(CaseVolumes((1.0, 1.0, 1.0), np.roll(prediction, -1, 0)), ["a"])["a"].at_border


def test_specks_are_no_large_components() -> None:
    prediction = np.zeros((20, 20, 20), np.uint8)
    prediction[2:8, 2:8, 2:8] = 1  # 216 voxels
    prediction[15, 15, 2:18] = 1  # 16 voxels, less than a tenth
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].large_components == 1
    prediction[15, 16, 2:18] = 1
    assert measure(CaseVolumes((1.0, 1.0, 1.0), prediction), ["a"])["a"].large_components == 2


def test_limits_of_agreement_by_hand() -> None:
    pairs = [(1.0, 2.0), (3.0, 3.0), (5.0, 4.0), (0.0, 0.0)]
    measured = {str(n): {"a": StructureMeasures(p, r, False, 1)} for n, (p, r) in enumerate(pairs)}
    measured["without"] = {"a": StructureMeasures(1.0, None, False, 1)}
    (of_a,) = agreement(measured, ["a", "b"])
    assert (of_a["num_cases"], of_a["bias"]) == (3, 0.0)  # differences -1, 0, 1: their standard deviation is 1
    assert of_a["limits"] == pytest.approx((-1.96, 1.96))
    (of_two,) = agreement({key: measured[key] for key in "01"}, ["a"])
    assert of_two["limits"] is None and of_two["bias"] == -0.5
