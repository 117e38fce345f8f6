# SPDX-License-Identifier: Apache-2.0
"""A dataset's own label values and ignored voxels, from the files to the files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.cli.commands import main
from scripts.data.checks.finding import Kind
from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.check_data import check_dataset
from scripts.errors import root_user_error
from scripts.networks.residual_unet import ResidualUNet

ROOT = Path(__file__).resolve().parents[2]
SPACING = [1.0, 1.5, 4.0]
SHAPE = (20, 18, 10)
IGNORED = (slice(0, 20), slice(12, 18), slice(0, 10))


def write_cases(folder: Path, values: list[int], ignored: int | None = None, dtype=np.int16) -> dict:
    """Two labelled, one unlabelled and one test case of two structures; overrides that name them."""
    folder.mkdir()
    draw = np.random.default_rng(0)

    def write(name, array):
        nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), folder / name)
        return name

    def case(number):
        classes = np.zeros(SHAPE, int)
        classes[2:9, 3:15, 2:8], classes[11:18, 3:15, 2:8] = 1, 2
        image = classes + draw.normal(0, 0.1, SHAPE)
        label = np.asarray(values)[classes]
        if ignored is not None:
            label[IGNORED], image[IGNORED] = ignored, 50.0
        return {
            "image": write(f"{number}.nii.gz", image.astype(np.float32)),
            "label": write(f"{number}_label.nii.gz", label.astype(dtype)),
        }

    lists = {"training": [case(n) for n in range(3)], "validation": [case(3)], "test": [case(4)]}
    (folder / "dataset.json").write_text(json.dumps(lists))
    return {
        "dataset_dir": str(folder),
        "label_names": ["background", "first", "second"],
        "labelled_cases": 2,
        "spacing": SPACING,
        "roi_size": [32, 16, 16],
    }


def test_a_model_learns_the_same_from_any_label_values(train, assert_same, tmp_path) -> None:
    plain = write_cases(tmp_path / "plain", [0, 1, 2])
    gaps = write_cases(tmp_path / "gaps", [0, 820, 205]) | {"label_values": [0, 820, 205]}
    atlas = [0, 312782546, 312782550]  # the same number in float32
    atlas = write_cases(tmp_path / "atlas", atlas, dtype=np.int32) | {"label_values": atlas}
    unsigned = [0, 4_000_000_001, 4_000_000_000]  # beyond int32
    unsigned = write_cases(tmp_path / "unsigned", unsigned, dtype=np.uint32) | {"label_values": unsigned}
    real = write_cases(tmp_path / "real", [0, 0.9999, 2.0001], dtype=np.float32)
    first = train(**plain, name="plain_model", val_interval=2)
    assert_same(first, train(**gaps, name="gaps_model", val_interval=2))
    assert_same(first, train(**atlas, name="atlas_model", val_interval=2))
    assert_same(first, train(**unsigned, name="unsigned_model", val_interval=2))
    assert_same(first, train(**real, name="real_model", val_interval=2))


def test_a_class_of_several_values_is_learned_as_one_and_checked_as_such(train, assert_same, tmp_path) -> None:
    def merge(label: np.ndarray) -> np.ndarray:
        return np.where(label > 0, np.where(np.indices(label.shape)[2] % 2, 4, 1), 0)

    plain, parts = (write_cases(tmp_path / name, [0, 1, 1]) for name in ("plain", "parts"))
    for file in (tmp_path / "parts").glob("*_label.nii.gz"):
        image = nib.load(file)
        nib.save(nib.Nifti1Image(merge(np.asarray(image.dataobj)).astype(np.int16), image.affine), file)
    names = {"label_names": ["background", "whole"]}
    merged = parts | names | {"label_values": [0, [1, 2, 4]]}
    first = train(**(plain | names), name="plain_model", val_interval=2)
    assert_same(first, train(**merged, name="merged_model", val_interval=2))
    spec = DatasetSpec(str(tmp_path / "parts"), label_names=names["label_names"], label_values=[0, [1, 2, 4]])
    told = {finding.kind for finding in check_dataset(load_cases(spec), spec, lambda items, _: items)}
    assert not told & {Kind.UNDECLARED, Kind.ABSENT_CLASS, Kind.NEVER_TOGETHER, Kind.EMPTY_LABEL}


def test_a_label_cut_to_its_painted_part_is_the_whole_label_to_training_check_and_evaluation(
    train, assert_same, make_workflow, tmp_path
) -> None:
    whole, cut = (write_cases(tmp_path / name, [0, 1, 2]) for name in ("whole", "cut"))
    for file in (tmp_path / "cut").glob("*_label.nii.gz"):
        part = nib.load(file).slicer[2:18, 3:15, 2:8]
        assert part.shape == (16, 12, 6) and part.affine[:3, 3].all()
        nib.save(part, file)
    assert_same(train(**whole, name="of_whole", val_interval=2), train(**cut, name="of_cut", val_interval=2))
    spec = DatasetSpec(str(tmp_path / "cut"), label_names=whole["label_names"], labelled_cases=2)
    found = check_dataset(load_cases(spec), spec, lambda items, _: items)
    assert [finding.file for finding in found if finding.kind is Kind.CUT_LABEL] == [
        str(tmp_path / f"cut/{number}_label.nii.gz") for number in (0, 1, 3, 4)
    ]
    assert not any(finding.is_error for finding in found)
    tables = []
    for data in (whole, cut):
        ckpt_dir = str(tmp_path / "of_whole")
        make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", ckpt_dir=ckpt_dir, **data).run()
        tables.append((tmp_path / "out/metrics.csv").read_text().replace("/cut/", "/whole/"))
    assert tables[0] == tables[1]


def test_evaluation_reports_regions_instead_of_classes(first_class_everywhere, make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 1, 2])
    regions = {"both": ["first", "second"], "second": ["second"]}
    more = {"ckpt_dir": str(first_class_everywhere), "run_id": "evaluating"}
    make_workflow("train.yaml", "evaluate.yaml", regions=regions, **more, **data).run()
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    voxels = 7 * 12 * 6  # of each structure; all voxels of the volume are called first
    assert float(rows["both"]["dice"]) == pytest.approx(2 * 2 * voxels / (2 * voxels + np.prod(SHAPE)))
    assert list(rows) == ["both", "second"] and rows["second"]["status"] == "missed"
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", "evaluate.yaml", regions={"both": ["third"]}, **more, **data).run()
    assert "both" in str(root_user_error(caught.value))


@pytest.fixture
def first_class_everywhere(tmp_path: Path) -> Path:
    """A model that calls every voxel class 1."""
    network = ResidualUNet(1, 3, widths=(4, 4, 4, 4), stem_stride=1, norm="instance")
    torch.nn.init.zeros_(network.output.weight)
    network.output.bias.data[:] = torch.tensor([0.0, 9.0, 0.0])
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models/model.pt")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255, 128], np.uint8),
        ([0, 820, -3], np.int16),
        ([0, [7, 9], 3], np.uint8),
        ([0, 312782550, 312782546], np.int32),
        ([0, 4_000_000_001, 4_000_000_000], np.uint32),
    ],
)
def test_inference_writes_the_files_own_values(values, dtype, first_class_everywhere, make_workflow, tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([*SPACING, 1.0])), folder / "a.nii.gz")
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(folder),
        ckpt_dir=str(first_class_everywhere),
        label_names=["background", "first", "second"],
        label_values=values,
        widths=[4, 4, 4, 4],
        norm="instance",
    ).run()
    written = nib.load(tmp_path / "out/a_seg.nii.gz")
    assert written.get_data_dtype() == dtype
    assert np.unique(np.asarray(written.dataobj)).tolist() == [np.ravel(values[1])[0]]


def test_ignored_voxels_count_in_no_metric(first_class_everywhere, make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 100, 200], ignored=7)
    make_workflow(
        *("train.yaml", "evaluate.yaml"),
        run_id="evaluating",
        label_values=[0, 100, 200],
        ignore_value=7,
        **data,
    ).run()
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    classes = np.asarray(nib.load(tmp_path / "data/4_label.nii.gz").dataobj)
    counted = classes != 7
    # All is called the first class, so that its Dice follows from volumes alone.
    reference = int((classes == 100).sum())
    expected = 2 * reference / (reference + int(counted.sum()))
    assert float(rows[0]["dice"]) == pytest.approx(expected)
    assert rows[1]["status"] == "missed"


def test_ignored_voxels_stay_what_they_are_through_every_transform(make_workflow, tmp_path) -> None:
    """Padding, crop, rotation and scaling move them with the image: they are bright in it."""
    data = write_cases(tmp_path / "data", [0, 1, 2], ignored=255)
    data |= {
        "roi_size": [24, 16, 16],
        "spacing": [1.25, 1.5, 2.0],
        "intensity": {"_target_": "Identityd", "keys": "image"},
    }
    workflow = make_workflow("train.yaml", ignore_value=255, restart=1, **data, **{"train#intensity_transforms": []})
    loader = iter(workflow.parser.get_parsed_content("train::dataloader"))
    seen = 0
    for _ in range(12):
        batch = next(loader)
        label, image = batch["label"][0, 0], batch["image"][0, 0]
        assert set(label.unique().tolist()) <= {-1, 0, 1, 2}
        ignored = label == -1
        seen += int(ignored.sum())
        # Half of a bright neighbour is where the image's and the label's interpolation draw the same line.
        assert ((image > 25) == ignored).float().mean() > 0.97
        assert label.shape == (24, 16, 16) and (label > 0).any()
    assert seen > 0


def test_no_patch_is_centred_on_an_ignored_voxel(make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 1, 2], ignored=255)
    options = {
        "roi_size": [4, 4, 4],
        "spacing": SPACING,
        "batch_labelled": 30,
        "train#spatial_transforms#1#prob": 0,
        "train#spatial_transforms#1#elastic_prob": 0,
    }
    workflow = make_workflow("train.yaml", ignore_value=255, restart=1, **data | options)
    label = next(iter(workflow.parser.get_parsed_content("train::dataloader")))["label"]
    assert (label == -1).any(), "they may lie in a patch"
    assert (label[:, 0, 2, 2, 2] != -1).all()


def test_what_new_dataset_finds_in_label_files_trains(make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 100, 200], ignored=255)
    config = tmp_path / "found.yaml"
    words = [str(tmp_path / "data"), "--name", "found", "--ignore_value", "255", "--config", str(config)]
    assert main(["new-dataset", *words, "--label_names", *data["label_names"]]) == 0
    text = config.read_text()
    assert "label_values: [0, 100, 200]" in text and "ignore_value: 255" in text
    sizes = {key: data[key] for key in ("roi_size", "spacing", "dataset_dir")}
    make_workflow("train.yaml", config, max_steps=1, **sizes).run()
    assert (tmp_path / "models/model.pt").exists()


def test_training_and_validation_with_ignored_voxels_go_through(make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 1, 2], ignored=255)
    make_workflow("train.yaml", ignore_value=255, val_interval=2, max_steps=2, **data).run()
    assert (tmp_path / "models/model_best.pt").exists()


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, r"0_label\.nii\.gz holds the label value 820, but .* declares \[0, 1, 2\]"),
        ({"label_values": [0, 205]}, "label_values has 2 values, but label_names names 3 classes"),
        ({"label_values": [0, 205, 820], "ignore_value": 205}, "ignore_value is 205, which is also a value of"),
    ],
)
def test_values_that_nobody_declared_are_one_sentence(declared, message, make_workflow, tmp_path) -> None:
    data = write_cases(tmp_path / "data", [0, 820, 205])
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", **data, **declared).run()
    mistake = str(root_user_error(caught.value))
    assert re.search(message, mistake), mistake
