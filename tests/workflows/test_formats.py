# SPDX-License-Identifier: Apache-2.0
"""One dataset of NIfTI, NRRD, MHA and DICOM cases trains, evaluates, and is segmented in the grid of each file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scripts.networks.residual_unet import ResidualUNet
from tests.volume_files import dicom_slices, oblique, save, stored_as, volume, write_dicom

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "demo_training_000": (".nii.gz", "RAS", ".nii.gz"),
    "demo_training_001": ("dicom", "LPS", ".nrrd"),
    "demo_training_002": (".nrrd", "PIR", ".mha"),
    "demo_training_003": (".mha", "ASL", ".nii.gz"),
    "demo_test_000": (".nii.gz", "LAS", ".nii.gz"),
}
"""Of the demo: the image's format and storage order, and the label's format, which keeps its order."""


@pytest.fixture(scope="module")
def mixed(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The dataset, and for each image the RAS affine and shape that its file was written with."""
    root = tmp_path_factory.mktemp("mixed")
    entries, grids = {}, {}
    for name, (form, axcodes, label_form) in CASES.items():
        image, label = (nibabel.load(tiny_demo / folder / f"{name}.nii.gz") for folder in ("images", "labels"))
        array, matrix = stored_as(np.round(image.get_fdata()).astype(np.int16), image.affine, axcodes)
        if form == "dicom":
            path = write_dicom(root / "images" / name, dicom_slices(array, matrix))
        else:
            path = save(root / "images" / f"{name}{form}", array, matrix)
        label_path = save(
            root / "labels" / f"{name}{label_form}", np.asarray(label.dataobj).astype(np.uint8), label.affine
        )
        entries[name] = {"image": str(path.relative_to(root)), "label": str(label_path.relative_to(root))}
        grids[name] = (matrix, array.shape)
    datalist = {
        "training": [entries[f"demo_training_00{k}"] for k in range(4)],
        "test": [entries["demo_test_000"]],
    }
    (root / "dataset.json").write_text(json.dumps(datalist))
    return root, grids


def infer(make_workflow, tmp_path: Path, dataset_dir: Path, **overrides) -> dict[str, nibabel.Nifti1Image]:
    make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(dataset_dir),
        output_dir=str(tmp_path / "segmented"),
        widths=[4, 4, 4, 4],
        norm="instance",
        spacing=[3.0, 3.0, 4.0],
        **overrides,
    ).run()
    return {path.name: nibabel.load(path) for path in (tmp_path / "segmented").glob("*.nii.gz")}


def assert_in_grid(output: nibabel.Nifti1Image, matrix: np.ndarray, shape: tuple[int, ...]) -> None:
    assert output.shape == shape
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    np.testing.assert_allclose(corners @ output.affine.T, corners @ matrix.T, atol=0.01)


def test_cases_of_all_formats_train_together_and_are_segmented_each_in_its_own_grid(mixed, make_workflow, tmp_path):
    root, grids = mixed
    data = {"dataset_dir": str(root)}
    make_workflow("train.yaml", max_steps=2, **data).run()
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", max_steps=2, **data).run()
    with (tmp_path / "out/metrics.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"demo_test_000"}
    outputs = infer(make_workflow, tmp_path, root / "images")
    assert set(outputs) == {f"{name}_seg.nii.gz" for name in CASES}
    for name, grid in grids.items():
        assert_in_grid(outputs[f"{name}_seg.nii.gz"], *grid)


def test_a_test_case_has_the_same_metrics_whatever_the_storage_orders_of_image_and_label(
    tiny_demo, trained, make_workflow, tmp_path
):
    """A prediction that is compared voxel by voxel with a label of other axes gives a wrong Dice in silence."""
    root = tmp_path / "orders"
    image, label = (nibabel.load(tiny_demo / folder / "demo_test_000.nii.gz") for folder in ("images", "labels"))
    tests = []
    for name, image_axes, label_axes in (("a.nii.gz", "RAS", "RAS"), ("b.mha", "PIR", "RAS"), ("c.nrrd", "RAS", "LPS")):
        paths = {"image": root / "images" / name, "label": root / "labels" / name}
        save(paths["image"], *stored_as(image.get_fdata(dtype=np.float32), image.affine, image_axes))
        save(paths["label"], *stored_as(np.asarray(label.dataobj).astype(np.uint8), label.affine, label_axes))
        tests.append({key: str(path) for key, path in paths.items()})
    training = [{key: str(tiny_demo / f"{key}s/demo_training_000.nii.gz") for key in ("image", "label")}]
    (root / "dataset.json").write_text(json.dumps({"training": training, "test": tests}))
    data = {"dataset_dir": str(root), "labelled_cases": 1}
    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", **data).run()
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    confidence = [float(row.pop("confidence")) for row in rows]  # a mean in the order in which voxels are stored
    by_case = {name: [list(row.values())[1:] for row in rows if row["case"] == name] for name in "abc"}
    assert len(by_case["a"]) == 3
    assert by_case["a"] == by_case["b"] == by_case["c"]
    assert confidence == pytest.approx(confidence[:3] * 3)


def test_cases_that_are_all_called_imaging_have_outputs_of_their_own(mixed, trained, make_workflow, tmp_path):
    root, grids = mixed
    names = ("demo_training_000", "demo_test_000")
    for name in names:
        (tmp_path / "cases" / name).mkdir(parents=True)
        shutil.copy(root / f"images/{name}.nii.gz", tmp_path / f"cases/{name}/imaging.nii.gz")
        shutil.copy(root / f"labels/{name}.nii.gz", tmp_path / f"cases/{name}/segmentation.nii.gz")
    outputs = infer(make_workflow, tmp_path, tmp_path / "cases", image_pattern="imaging.nii.gz")
    assert set(outputs) == {f"{name}_imaging_seg.nii.gz" for name in names}
    for name in names:
        assert_in_grid(outputs[f"{name}_imaging_seg.nii.gz"], *grids[name])


@pytest.mark.parametrize(("shape", "channels"), [((12, 14, 10), 2), ((12, 14, 1), 1)])
@pytest.mark.parametrize("axcodes", ["PIR", "LPS"])
def test_channels_and_one_slice_come_back_as_label_volumes_of_the_same_grid(
    make_workflow, tmp_path, shape, channels, axcodes
):
    network = ResidualUNet(channels, 4, widths=(4, 4, 4, 4), stem_stride=1, norm="instance")
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models/model.pt")
    array, matrix = stored_as(volume(shape), oblique((3.0, 3.0, 4.0)), axcodes)
    several = np.stack([array] * channels, axis=-1)
    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(several, matrix), tmp_path / "images/a.nii.gz")
    outputs = infer(make_workflow, tmp_path, tmp_path / "images", in_channels=channels)
    assert_in_grid(outputs["a_seg.nii.gz"], matrix, array.shape)


@pytest.mark.parametrize("name", ["demo_training_001", "demo_training_002.nrrd"])
def test_one_dicom_folder_and_one_file_are_inputs_too(mixed, trained, make_workflow, tmp_path, name):
    root, grids = mixed
    outputs = infer(make_workflow, tmp_path, root / "images" / name)
    case = name.removesuffix(".nrrd")
    assert list(outputs) == [f"{case}_seg.nii.gz"]
    assert_in_grid(outputs[f"{case}_seg.nii.gz"], *grids[case])
