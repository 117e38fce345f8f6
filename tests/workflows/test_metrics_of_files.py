# SPDX-License-Identifier: Apache-2.0
"""What evaluation reports, against NumPy and SciPy on the files themselves: on their grid, in their millimetres."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from tests.volume_files import save, stored_as

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["background", "first", "second"]
SHAPE = (22, 19, 9)
SPACING = (0.9, 1.3, 3.1)
INFERENCE_SPACING = [1.6, 1.1, 2.2]

CASES = {
    "both": {1: ((3, 9), (4, 12), (2, 6)), 2: ((12, 19), (5, 14), (3, 8))},
    "missed": {1: ((3, 9), (4, 12), (2, 6)), 2: ((12, 19), (5, 14), (3, 8))},
    "invented": {1: ((5, 11), (2, 9), (1, 5))},
    "absent": {1: ((4, 10), (6, 15), (3, 7))},
}
"""Boxes of the reference. The image of `missed` does not show class 2, that of `invented` shows one that is none."""


@pytest.fixture
def nearest_brightness(tmp_path: Path) -> dict:
    """A network that calls a voxel of brightness about c class c; overrides that name it."""
    network = nn.Conv3d(1, 3, 1)
    means = torch.arange(3.0)
    network.weight.data = (20 * means).reshape(3, 1, 1, 1, 1)
    network.bias.data = -10 * means.square()
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models/model.pt")
    return {
        "network_def": "$torch.nn.Conv3d(1, 3, 1)",
        "label_names": NAMES,
        "intensity": {"_target_": "Identityd", "keys": "image"},
        "spacing": INFERENCE_SPACING,
        "ckpt_dir": str(tmp_path / "models"),
        "device": "cpu",
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Images that show a little less or more than the reference; labels with their axes in another order."""
    folder, affine = tmp_path / "data", np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-40, 12, 5]
    draw = np.random.default_rng(0)
    tests = []
    for name, boxes in CASES.items():
        reference, shown = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE)
        for c, box in boxes.items():
            reference[tuple(slice(*side) for side in box)] = c
            if not (name == "missed" and c == 2):
                shifted = tuple(slice(a + 1, b + 1) for a, b in box)
                shown[shifted] = c
        if name == "invented":
            shown[14:20, 10:17, 2:7] = 2
        save(folder / f"images/{name}.nii.gz", (shown + draw.normal(0, 0.05, SHAPE)).astype(np.float32), affine)
        save(folder / f"labels/{name}.nii.gz", *stored_as(reference, affine, "PIR"))
        tests.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    # Nothing is trained here, but a datalist names what is.
    save(folder / "images/trains.nii.gz", np.zeros(SHAPE, np.float32), affine)
    save(folder / "labels/trains.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    training = [{"image": "images/trains.nii.gz", "label": "labels/trains.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"training": training, "test": tests}))
    return folder


TOLERANCE = max(INFERENCE_SPACING)  # the default


def surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def independent(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice, 95HD and ASD in mm of two masks on the files' grid; a structure on one side only is the worst case."""
    if not prediction.any() and not reference.any():
        return dict.fromkeys(("dice", "hd95_mm", "asd_mm", "surface_dice"), math.nan)
    if not prediction.any() or not reference.any():
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(SHAPE, SPACING, strict=True)))
        return {"dice": 0.0, "hd95_mm": diagonal, "asd_mm": diagonal, "surface_dice": 0.0}
    to_reference = ndimage.distance_transform_edt(~surface(reference), sampling=SPACING)[surface(prediction)]
    to_prediction = ndimage.distance_transform_edt(~surface(prediction), sampling=SPACING)[surface(reference)]
    pooled = np.concatenate([to_reference, to_prediction])
    return {
        "dice": 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()),
        "hd95_mm": np.percentile(pooled, 95),
        "asd_mm": to_reference.mean(),
        "surface_dice": (pooled < TOLERANCE + 1e-3).mean(),
    }


def in_ras(path: Path) -> np.ndarray:
    volume = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_allclose(volume.header.get_zooms(), SPACING, atol=1e-5)
    return np.asarray(volume.dataobj)


def test_evaluation_is_what_scipy_computes_from_the_files(nearest_brightness, files, make_workflow, tmp_path) -> None:
    make_workflow(
        *("train.yaml", "evaluate.yaml"),
        run_id="evaluating",
        dataset_dir=str(files),
        labelled_cases=None,
        **nearest_brightness,
    ).run()
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(files / "images"),
        output_dir=str(tmp_path / "masks"),
        **nearest_brightness,
    ).run()
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert len(rows) == len(CASES) * 2
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        prediction = in_ras(tmp_path / f"masks/{row['case']}_seg.nii.gz") == int(row["label"])
        reference = in_ras(files / f"labels/{row['case']}.nii.gz") == int(row["label"])
        for metric, value in independent(prediction, reference).items():
            reported = float(row[metric]) if row[metric] else math.nan
            assert reported == pytest.approx(value, abs=1e-4, nan_ok=True), (row["case"], row["class"], metric)
            if not math.isnan(value):
                found.setdefault((row["class"], metric), []).append(value)
    statuses = {(row["case"], row["class"]): row["status"] for row in rows}
    assert statuses[("missed", "second")] == "missed" and statuses[("invented", "second")] == "false_positive"
    assert statuses[("absent", "second")] == "absent" and statuses[("both", "second")] == "found"

    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["surface_tolerance_mm"] == TOLERANCE
    for metric in ("dice", "hd95_mm", "asd_mm", "surface_dice"):
        means = [np.mean(found[(name, metric)]) for name in NAMES[1:]]
        assert summary[f"mean_{metric}"] == pytest.approx(np.mean(means), abs=1e-4)
        assert summary["per_class"]["second"][f"mean_{metric}"] == pytest.approx(means[1], abs=1e-4)
    second = summary["per_class"]["second"]
    assert (second["num_cases"], second["missed"], second["false_positives"]) == (3, 1, 1)
    assert "missed" in summary["convention"] and "diagonal" in summary["convention"]
    assert 0.3 < summary["per_class"]["first"]["mean_dice"] < 1, "predictions are neither perfect nor nothing"
