# SPDX-License-Identifier: Apache-2.0
"""configs/inference.yaml and evaluate.yaml: outputs are on the grid of their inputs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import aff2axcodes

from scripts.errors import UserError, root_user_error
from scripts.networks.vnet import VNet
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bright_is_large_organ(tmp_path: Path) -> Path:
    """A model that predicts class 1 for bright voxels, so that the position of its output can be checked."""
    network = VNet(1, 4, base_filters=4, norm="instance")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    # The first convolution of the first stage copies the image; norm and ReLU keep values above the mean.
    stage = network.encoder.stage1[0]
    stage.conv.weight.data[0, 0, 1, 1, 1] = 1.0
    stage.adn.N.weight.data[0] = 1.0
    last = network.decoder.stage1[0]
    last.conv.weight.data[0, 0, 1, 1, 1] = 1.0
    last.adn.N.weight.data[0] = 1.0
    # Class 1 is predicted if the kept value is above 1 (in standard deviations of the image), else background.
    network.decoder.output.conv.weight.data[1, 0] = 4.0
    network.decoder.output.conv.bias.data[:] = torch.tensor([4.0, 0.0, -100.0, -100.0])
    folder = tmp_path / "models"
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def rotation_x(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def oblique_affine(axes: list[int], signs: list[int], spacing: list[float]) -> np.ndarray:
    """An affine with permuted and flipped axes, tilted by 11 degrees."""
    affine = np.eye(4)
    permutation = np.zeros((3, 3))
    for column, (axis, sign, step) in enumerate(zip(axes, signs, spacing, strict=True)):
        permutation[axis, column] = sign * step
    affine[:3, :3] = rotation_x(11.0) @ permutation
    affine[:3, 3] = [-31.0, 12.5, 77.0]
    return affine


@pytest.mark.parametrize(
    ("axes", "signs"), [([0, 1, 2], [1, 1, 1]), ([0, 1, 2], [-1, -1, 1]), ([2, 0, 1], [1, -1, -1])]
)
def test_output_is_on_the_grid_of_an_oblique_anisotropic_input(
    axes, signs, bright_is_large_organ, make_workflow, tmp_path
) -> None:
    shape = (41, 36, 23)
    image = np.zeros(shape, np.float32)
    image[6:16, 20:30, 4:12] = 100.0  # off-centre, so that a flipped or swapped axis shows
    affine = oblique_affine(axes, signs, [1.1, 1.7, 2.6])
    folder = tmp_path / "images"
    folder.mkdir()
    nib.save(nib.Nifti1Image(image, affine), folder / "Case 1.v2.nii.gz")
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml", "networks/vnet.yaml"),
        workflow_type="infer",
        dataset_dir=str(folder),
        ckpt_dir=str(bright_is_large_organ),
        output_dir=str(tmp_path / "out"),
        base_filters=4,
        spacing=[1.5, 1.5, 2.0],
    ).run()
    written = list((tmp_path / "out").glob("*.nii.gz"))
    assert [path.name for path in written] == ["Case 1.v2_seg.nii.gz"]
    output = nib.load(written[0])
    assert output.shape == shape
    np.testing.assert_allclose(output.affine, affine, atol=1e-4)
    assert aff2axcodes(output.affine) == aff2axcodes(affine)
    label = np.asarray(output.dataobj)
    assert output.get_data_dtype() == np.uint8
    reference = image > 50
    dice = 2 * (reference & (label == 1)).sum() / (reference.sum() + (label == 1).sum())
    # Resampling to 1.5 x 1.5 x 2 mm and back moves the surface by less than a voxel.
    assert dice > 0.8


@pytest.mark.parametrize("dataset", [None, *sorted(path.name for path in (ROOT / "configs/datasets").glob("*.yaml"))])
def test_preprocessing_of_inference_equals_that_of_training(dataset) -> None:
    """With each dataset's file after both configs; `None` is the model that comes with the bundle."""

    def load(name: str, behind: str | None) -> dict:
        files = [name] if behind is None else [name, f"datasets/{behind}"]
        return ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files])

    train, infer = load("train.yaml", dataset or "hippocampus.yaml"), load("inference.yaml", dataset)
    mine = [
        t for t in infer["preprocessing"]["transforms"] if not (isinstance(t, dict) and t["_target_"] == "EnsureTyped")
    ]
    theirs = []
    for transform in train["train"]["deterministic_transforms"]:
        if isinstance(transform, dict):
            if transform["keys"] == "label":
                continue
            transform = {k: v for k, v in transform.items() if k != "allow_missing_keys"} | {"keys": "image"}
            if isinstance(transform.get("mode"), list):
                transform["mode"] = transform["mode"][0]
        theirs.append(transform)
    assert mine == theirs
    shared = [
        "in_channels",
        "label_names",
        "label_values",
        "spacing",
        "intensity",
        "roi_size",
        "widths",
        "network_def",
        "window_size",
    ]
    assert {key: train[key] for key in shared} == {key: infer[key] for key in shared}
    assert train["validate"]["inferer"] == infer["inferer"]


def test_inference_has_all_required_properties(make_workflow, bright_is_large_organ, tiny_demo) -> None:
    workflow = make_workflow(
        *("inference.yaml", "datasets/demo.yaml", "networks/vnet.yaml"),
        workflow_type="infer",
        dataset_dir=str(tiny_demo / "images"),
        ckpt_dir=str(bright_is_large_organ),
        base_filters=4,
    )
    assert workflow.check_properties() == []


@pytest.mark.parametrize("missing", ["model", "images"])
def test_missing_model_or_images_are_named(missing, make_workflow, bright_is_large_organ, tmp_path) -> None:
    workflow = make_workflow(
        *("inference.yaml", "datasets/demo.yaml", "networks/vnet.yaml"),
        workflow_type="infer",
        dataset_dir=str(tmp_path),
        ckpt_dir=str(tmp_path / "nothing" if missing == "model" else bright_is_large_organ),
        base_filters=4,
    )
    with pytest.raises(Exception) as caught:
        workflow.run()
    mistake = root_user_error(caught.value)
    assert isinstance(mistake, UserError)
    assert ("model.pt" if missing == "model" else str(tmp_path)) in str(mistake)


def test_evaluating_writes_a_row_per_case_and_class_and_their_means(trained, make_workflow, tmp_path) -> None:
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating").run()
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in ("demo_test_000", "demo_test_001") for name in ("large organ", "small organ", "vessel")
    ]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    by_class = {
        name: np.mean([float(row["dice"]) for row in rows if row["class"] == name])
        for name in ("large organ", "small organ", "vessel")
    }
    assert summary["mean_dice"] == pytest.approx(np.mean(list(by_class.values())))
    assert summary["per_class"]["vessel"]["mean_dice"] == pytest.approx(by_class["vessel"])
    assert summary["num_cases"] == 2
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)


def test_a_scan_unlike_those_of_training_raises_alarms(make_workflow, tmp_path, tiny_demo) -> None:
    crossval = tmp_path / "out/crossval/demo/crossval.json"
    crossval.parent.mkdir(parents=True)
    crossval.write_text('{"calibration": {"factor": 0.5, "cases": 2, "error": 0.1, "predicted": [0.0, 0.9]}}')
    make_workflow("train.yaml", max_steps=2).run()
    scan = nib.load(sorted((tiny_demo / "images").glob("demo_training*"))[0])
    for name, factor in (("same", 1.0), ("coarse", 3.0)):
        (tmp_path / "scans").mkdir(exist_ok=True)
        affine = scan.affine @ np.diag([factor, factor, factor, 1.0])
        nib.save(nib.Nifti1Image(scan.get_fdata(), affine), tmp_path / f"scans/{name}.nii.gz")
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "predicted"),
        largest_component=True,
        **{key: TINY[key] for key in ("roi_size", "widths", "norm", "spacing", "precision")},
    ).run()
    same, coarse = (json.loads((tmp_path / f"predicted/{name}_seg.json").read_text()) for name in ("same", "coarse"))
    assert not any("Voxel size" in alarm or "Size of" in alarm or "Intensity" in alarm for alarm in same["alarms"])
    assert any(alarm.startswith("Voxel size") for alarm in coarse["alarms"])
    assert coarse["predicted_dice"] == pytest.approx(0.5 * coarse["confidence"], abs=1e-4)
    with (tmp_path / "predicted/volumes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "coarse"]
    assert [row["alarms"] for row in rows] == [" ".join(coarse["alarms"])] * 3
    volumes = {row["structure"]: float(row["volume_ml"]) for row in rows}
    told = [re.match(r"Volume of (.+?) ([\d.e+]+) ml", alarm) for alarm in coarse["alarms"]]
    found = {match[1]: float(match[2]) for match in told if match}
    assert found and all(value == pytest.approx(volumes[name], rel=0.01) for name, value in found.items())


def test_evaluating_keeps_what_it_compared_and_shows_it(trained, make_workflow, tmp_path, tiny_demo) -> None:
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", report="false").run()
    assert not (tmp_path / "out/predictions").exists() and not (tmp_path / "out/report").exists()
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", report=...).run()
    with (tmp_path / "out/metrics.csv").open() as file:
        dice = {(row["case"], row["class"]): float(row["dice"]) for row in csv.DictReader(file)}
    kept = json.loads((tmp_path / "out/predictions/cases.json").read_text())
    assert [case["case"] for case in kept["cases"]] == ["demo_test_000", "demo_test_001"]
    for case in kept["cases"]:
        prediction, reference = (nib.load(tmp_path / "out/predictions" / case[k]) for k in ("prediction", "reference"))
        image = nib.load(case["image"])
        assert np.allclose(prediction.affine, image.affine) and np.allclose(reference.affine, image.affine)
        p, r = np.asarray(prediction.dataobj) == 1, np.asarray(reference.dataobj) == 1
        assert 2 * (p & r).sum() / (p.sum() + r.sum()) == pytest.approx(dice[case["case"], "large organ"])
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert page.count("<image ") == 6 and "demo" in page
    assert sorted(p.name for p in (tmp_path / "out/predictions").iterdir())[0] == "cases.json"


def test_evaluating_needs_test_cases_alone(bright_is_large_organ, make_workflow, tiny_demo, tmp_path) -> None:
    lists = json.loads((tiny_demo / "dataset.json").read_text())
    (tmp_path / "only.json").write_text(json.dumps({"test": lists["test"]}))
    make_workflow(
        *("train.yaml", "networks/vnet.yaml", "evaluate.yaml"),
        run_id="evaluating",
        base_filters=4,
        datalist=str(tmp_path / "only.json"),
        labelled_cases=50,
        ckpt_dir=str(bright_is_large_organ),
    ).run()
    assert json.loads((tmp_path / "out/summary.json").read_text())["num_cases"] == 2


def test_evaluation_uses_the_grid_of_the_label_file(make_workflow, tmp_path, tiny_demo) -> None:
    """A perfect model has Dice 1 only if references are not resampled and predictions are resampled to their grid."""
    workflow = make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating")
    dataset = workflow.parser.get_parsed_content("evaluate::dataset")
    for item, case in zip(dataset, dataset.data, strict=True):
        raw = nib.load(case["reference"])
        assert tuple(item["reference"].shape[1:]) == raw.shape
        assert np.array_equal(item["reference"][0].numpy(), np.asarray(raw.dataobj))
        assert "label" not in item


def test_evaluating_without_test_cases_is_an_error(trained, make_workflow) -> None:
    workflow = make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", test_cases=[])
    with pytest.raises(Exception) as caught:
        workflow.run()
    mistake = root_user_error(caught.value)
    assert isinstance(mistake, UserError) and "test" in str(mistake)


def test_evaluation_by_an_ensemble_with_mirrored_passes_and_largest_components(
    trained, make_workflow, tmp_path
) -> None:
    """An ensemble of one network twice is that network; the other options change what is evaluated."""

    def dice(**options) -> list[str]:
        make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", **options).run()
        with (tmp_path / "out/metrics.csv").open() as file:
            return [row["dice"] for row in csv.DictReader(file)]

    plain = dice()
    assert dice(checkpoint=["model.pt", str(tmp_path / "models/model.pt")]) == pytest.approx(plain)
    assert dice(mirror_axes=[0, 1, 2]) != plain
    assert dice(largest_component=["large organ"])[1::3] == plain[1::3]
    assert dice(largest_component=True) != plain
