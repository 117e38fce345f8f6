# SPDX-License-Identifier: Apache-2.0
"""`run pseudo_label` and `run prioritise_unlabelled`, and the way back of a corrected label."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError, root_user_error
from scripts.images.read import read_header, read_volume
from scripts.labelling.nnunet import write_nnunet_dataset
from tests.volume_files import save, stored_as


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def dataset(tiny_demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo, to put files into."""
    return Path(shutil.copytree(tiny_demo, tmp_path / "dataset"))


@pytest.fixture
def label(dataset: Path, make_workflow):
    """Run one of the two commands on the copy."""

    def run(command: str, *files: str, **overrides) -> None:
        data = {"dataset_dir": str(dataset)}
        make_workflow("train.yaml", *files, "labelling.yaml", run_id=command, **data, **overrides).run()

    return run


def test_a_pseudo_label_that_is_moved_trains_as_a_labelled_case(
    trained, dataset, label, make_workflow, tmp_path
) -> None:
    data = {"dataset_dir": str(dataset)}
    label("pseudo_label", max_steps=2)
    out = tmp_path / "out/pseudo_labels"
    cases = make_workflow("train.yaml", **data).parser.get_parsed_content("cases")
    unlabelled = [case["case"] for case in cases.unlabelled]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == sorted(f"{name}.nii.gz" for name in unlabelled)
    table = rows(out / "confidence.csv")
    assert sorted(row["case"] for row in table) == sorted(unlabelled)
    assert [float(row["confidence"]) for row in table] == sorted(float(row["confidence"]) for row in table)
    assert all(0 <= float(row["confidence"]) <= 1 for row in table)
    for row in table:
        written, image = nibabel.load(out / row["label"]), nibabel.load(row["image"])
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    moved = table[0]["case"]
    (dataset / "corrected_labels").mkdir()
    shutil.move(out / f"{moved}.nii.gz", dataset / "corrected_labels")
    again = make_workflow("train.yaml", max_steps=2, ckpt_dir=str(tmp_path / "again"), **data)
    cases = again.parser.get_parsed_content("cases")
    assert [case["case"] for case in cases.labelled] == ["demo_training_000", "demo_training_001", moved]
    assert moved not in [case["case"] for case in cases.unlabelled]
    again.run()


def test_a_pseudo_label_for_3d_slicer_comes_back_as_a_label(trained, dataset, label, make_workflow, tmp_path) -> None:
    data = {"dataset_dir": str(dataset)}
    label("pseudo_label", max_steps=2, output_format="seg_nrrd")
    written = sorted((tmp_path / "out/pseudo_labels").glob("*.seg.nrrd"))
    assert read_header(written[0]).segments == {1: "large organ", 2: "small organ", 3: "vessel"}
    name = written[0].name.removesuffix(".seg.nrrd")
    (dataset / "corrected_labels").mkdir()
    shutil.move(written[0], dataset / "corrected_labels")
    cases = make_workflow("train.yaml", **data).parser.get_parsed_content("cases")
    assert cases.labelled[-1]["case"] == name and len(written) == len(cases.unlabelled) + 1


@pytest.mark.parametrize(("output_format", "ending"), [("nifti", ".nii.gz"), ("seg_nrrd", ".seg.nrrd")])
def test_a_case_with_some_labelled_slices_comes_back_and_the_others_are_ignored(
    output_format, ending, trained, dataset, label, make_workflow, tmp_path
) -> None:
    data = {"dataset_dir": str(dataset), "ignore_value": 255}
    label("pseudo_label", max_steps=2, slices=3, ignore_value=255, output_format=output_format)
    out = tmp_path / "out/pseudo_labels"
    assert not list(out.glob("*uncertainty*"))
    table = rows(out / "slices.csv")
    moved = table[0]["case"]
    of_case = [row for row in table if row["case"] == moved]
    assert [float(row["expected_error"]) for row in of_case] == sorted(
        (float(row["expected_error"]) for row in of_case), reverse=True
    )
    slices = sorted(int(row["slice"]) for row in of_case)
    header, (voxels,) = read_volume(out / f"{moved}{ending}")
    assert header.segments[255] == "ignored"
    assert len(slices) == 3 and {row["axis"] for row in of_case} == {"2"}  # the demo's voxels are longest along it
    assert (np.delete(voxels, slices, axis=2) == 255).all() and (voxels[..., slices] < 4).all()
    for row in of_case:
        middle = [(side - 1) / 2 for side in voxels.shape[:2]] + [int(row["slice"]), 1]
        assert float(row["position_mm"]) == pytest.approx(
            (header.affine @ middle)["RAS".index(row["direction"])], abs=0.01
        )
    (dataset / "corrected_labels").mkdir()
    shutil.move(out / f"{moved}{ending}", dataset / "corrected_labels")
    again = make_workflow("train.yaml", max_steps=2, ckpt_dir=str(tmp_path / "again"), **data)
    cases = again.parser.get_parsed_content("cases")
    assert [case["case"] for case in cases.labelled][2:] == [moved]
    item = again.parser.get_parsed_content("train::dataset")._cache[2]
    classes = item["label"].as_tensor()[0]
    drawn = (classes != -1).any(dim=(0, 1))
    assert 1 <= int(drawn.sum()) <= 3
    # Patches are centred on voxels of these slices alone.
    centres = torch.cat([torch.as_tensor(voxels) for voxels in item["label_cls_indices"]])
    assert len(centres) == int((classes != -1).sum()) and (classes.flatten()[centres.long()] != -1).all()
    again.run()


@pytest.mark.parametrize(
    ("options", "named"), [({}, "ignore_value"), ({"ignore_value": 255, "layout": "nnunet"}, "layout")]
)
def test_slices_need_a_value_to_ignore_and_no_other_layout(options, named, label, trained, tmp_path) -> None:
    with pytest.raises(Exception) as caught:
        label("pseudo_label", max_steps=1, slices=3, pseudo_label_dir=str(tmp_path / "Dataset001_a"), **options)
    assert named in str(root_user_error(caught.value))


@pytest.mark.parametrize("method", [[], ["methods/self_training.yaml"]])
def test_self_training_leaves_out_what_another_program_contradicts(method, dataset, make_workflow, tmp_path) -> None:
    names = ["demo_training_002", "demo_training_003"]
    (dataset / "foreign_labels").mkdir()
    for name in names:
        file = nibabel.load(dataset / f"labels/{name}.nii.gz")
        classes = 3 - np.asarray(file.dataobj)  # background and vessel are exchanged
        save(dataset / f"foreign_labels/{name}.nii.gz", *stored_as(classes, file.affine, "PIR"))
    workflow = make_workflow(
        *("train.yaml", *method),
        dataset_dir=str(dataset),
        foreign_labels="foreign_labels",
        **{"max_steps": 8, "restart": 0.25, "unlabelled_start": 0.3, "ramp_end": 0.4, "learning_rate_curve::warmup": 1},
        **{"self_training::min_dice": 0},
    )
    workflow.run()
    assert all(np.isfinite(value) for value in workflow.parser.get_parsed_content("loss").last.values())
    transforms = workflow.parser.get_parsed_content("validate::preprocessing")
    for name in names:
        case = {
            "image": str(dataset / f"images/{name}.nii.gz"),
            "label": str(dataset / f"foreign_labels/{name}.nii.gz"),
        }
        foreign = np.asarray(transforms(case)["label"])[0]
        with np.load(tmp_path / f"models/pseudo_labels/round_1/{name}.npz") as stored:
            labels = stored["labels"]
        assert np.array_equal(labels[labels >= 0], foreign[labels >= 0]) and 0 < (labels < 0).mean() < 1
    with np.load(tmp_path / "models/pseudo_labels/round_1/demo_training_004.npz") as stored:
        assert (stored["labels"] >= 0).all()


def test_labels_of_other_programs_are_for_self_training_only(dataset, make_workflow) -> None:
    (dataset / "foreign_labels").mkdir()
    given = {"dataset_dir": str(dataset), "foreign_labels": "foreign_labels", "max_steps": 2}
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", "methods/mean_teacher.yaml", **given).run()
    assert "foreign_labels" in str(root_user_error(caught.value))
    # the control of a cross-validation, whose dataset's file may name them
    control = make_workflow("train.yaml", "methods/supervised.yaml", dataset_dir=str(dataset), max_steps=2)
    assert control.parser.get_parsed_content("dataset_spec").foreign_labels is None


def test_the_layout_nnunet_is_a_dataset_of_nnunet_with_all_cases(
    trained, dataset, label, make_workflow, tmp_path
) -> None:
    data, values = {"dataset_dir": str(dataset)}, [0, 5, 7, 3]
    for file in (dataset / "labels").iterdir():
        image = nibabel.load(file)
        classes = np.asarray(image.dataobj)
        stored = stored_as(np.array(values, np.uint8)[classes], image.affine, "PIR")
        save(file, *stored)  # other values, and axes in another order than those of the image
    more = {"label_values": values, "max_steps": 2, "validation_cases": 1}
    with pytest.raises(Exception) as caught:
        label("pseudo_label", layout="nnunet", **more)
    assert "pseudo_labels" in str(root_user_error(caught.value))
    folder = tmp_path / "raw/Dataset123_demo"
    label("pseudo_label", layout="nnunet", pseudo_label_dir=str(folder), **more)

    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "large organ": 1, "small organ": 2, "vessel": 3}
    assert content["channel_names"] == {"0": "MRI 1"} and content["file_ending"] == ".nii.gz"
    cases = make_workflow("train.yaml", **data, **more).parser.get_parsed_content("cases")
    pseudo = sorted(case["case"] for case in cases.unlabelled)
    true = [case["case"] for case in cases.labelled + cases.validation]
    assert content["pseudo_labels"] == pseudo and content["numTraining"] == len(pseudo) + len(true)
    images = sorted(path.name for path in (folder / "imagesTr").iterdir())
    assert images == sorted(f"{name}_0000.nii.gz" for name in pseudo + true)
    assert len(list((folder / "imagesTs").iterdir())) == len(cases.test)
    for name in pseudo + true:
        image, labels = (
            nibabel.load(folder / f"{place}.nii.gz") for place in (f"imagesTr/{name}_0000", f"labelsTr/{name}")
        )
        assert image.shape == labels.shape
        np.testing.assert_allclose(image.affine, labels.affine, atol=1e-5)
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2, 3}
    case = cases.labelled[0]
    image, expected = nibabel.load(case["image"]), nibabel.load(case["label"])
    written = nibabel.as_closest_canonical(nibabel.load(folder / f"labelsTr/{case['case']}.nii.gz"))
    expected = nibabel.as_closest_canonical(expected)
    np.testing.assert_array_equal(np.array(values)[np.asarray(written.dataobj)], np.asarray(expected.dataobj))
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(folder / f"imagesTr/{case['case']}_0000.nii.gz").dataobj), np.asarray(image.dataobj)
    )
    with pytest.raises(Exception) as caught:  # again
        label("pseudo_label", layout="nnunet", pseudo_label_dir=str(folder), **more)
    assert str(folder) in str(root_user_error(caught.value))


def test_ignored_voxels_are_those_of_nnunets_highest_label(tmp_path) -> None:
    affine, classes = np.diag([1.0, 2.0, 3.0, 1.0]), np.zeros((3, 4, 5), np.uint8)
    classes[0, 0, 0], classes[1, 1, 1] = 1, 9
    for number in (1, 2):  # of a type that other readers of NIfTI do not know
        voxels = np.full(classes.shape, number, np.int64)
        nibabel.save(nibabel.Nifti1Image(voxels, affine, dtype=np.int64), tmp_path / f"{number}.nii.gz")
    case = {
        "case": "a",
        "image": [str(tmp_path / "1.nii.gz"), str(tmp_path / "2.nii.gz")],
        "label": str(save(tmp_path / "l.nii.gz", classes, affine)),
    }
    spec = DatasetSpec("x", in_channels=2, label_names=("background", "bone"), ignore_value=9)
    write_nnunet_dataset(CaseLists(labelled=[case]), spec, tmp_path / "Dataset001_x")
    content = json.loads((tmp_path / "Dataset001_x/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "bone": 1, "ignore": 2}
    assert list(content["channel_names"]) == ["0", "1"]
    written = np.asarray(nibabel.load(tmp_path / "Dataset001_x/labelsTr/a.nii.gz").dataobj)
    assert (written[0, 0, 0], written[1, 1, 1], written.sum()) == (1, 2, 3)
    second = nibabel.load(tmp_path / "Dataset001_x/imagesTr/a_0001.nii.gz")
    assert np.asarray(second.dataobj).max() == 2 and second.get_data_dtype() == np.float32


@pytest.mark.parametrize("command", ["prioritise_unlabelled", "rank_unlabelled"])
def test_unlabelled_cases_are_prioritised_by_three_criteria(command, label, trained, dataset, tmp_path) -> None:
    label(command)
    table = rows(tmp_path / "out/prioritise_unlabelled.csv")
    assert [row["priority"] for row in table] == [str(n + 1) for n in range(len(table))]
    assert sorted(row["case"] for row in table) == [f"demo_training_00{n}" for n in range(2, 6)]
    means = [
        sum(int(row[f"priority_{n}"]) for n in ("uncertainty", "prototype_distance", "diversity")) for row in table
    ]
    assert means == sorted(means)
    assert sorted(int(row["priority_diversity"]) for row in table) == [1, 2, 3, 4]
    assert all(0 <= float(row["uncertainty"]) <= 1 for row in table)


@pytest.mark.parametrize(
    ("files", "overrides", "told"),
    [
        ((), {"order_by": ["size"]}, "order_by must be one or more of uncertainty"),
        (("methods/supervised.yaml",), {}, "prototypes"),
        ((), {"ckpt_dir": "/nowhere"}, "/nowhere"),
        ((), {"elements_per_class": 7}, "loss"),
        ((), {"labelled_cases": 6}, "unlabelled"),
    ],
)
def test_a_missing_requirement_of_priorities_is_a_user_error(files, overrides, told, label, train, request) -> None:
    train(*files, max_steps=1) if files else request.getfixturevalue("trained")
    with pytest.raises(Exception) as caught:
        label("prioritise_unlabelled", *files, **overrides)
    mistake = root_user_error(caught.value)
    assert isinstance(mistake, UserError) and told in str(mistake)


def test_a_case_that_cannot_be_read_is_told_and_the_others_are_labelled(label, trained, dataset, tmp_path) -> None:
    image = dataset / "images/demo_training_003.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(Exception) as caught:
        label("pseudo_label")
    assert "demo_training_003" in str(root_user_error(caught.value))
    assert len(rows(tmp_path / "out/pseudo_labels/confidence.csv")) == 3


def test_a_corrected_label_that_belongs_to_no_case_stops_training(dataset, make_workflow) -> None:
    (dataset / "corrected_labels").mkdir()
    shutil.copy(dataset / "labels/demo_training_004.nii.gz", dataset / "corrected_labels/demo_training_4.nii.gz")
    workflow = make_workflow("train.yaml", dataset_dir=str(dataset))
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "demo_training_4.nii.gz" in str(root_user_error(caught.value))


def test_the_datalist_of_the_copy_is_left_as_it_is(dataset, tiny_demo) -> None:
    assert json.loads((dataset / "dataset.json").read_text()) == json.loads((tiny_demo / "dataset.json").read_text())
