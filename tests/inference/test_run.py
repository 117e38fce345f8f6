# SPDX-License-Identifier: Apache-2.0
"""The files that are written for a segmentation."""

from __future__ import annotations

import json
import os
import sys

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts.errors import UserError
from scripts.images.monai import VolumeReader
from scripts.images.read import read_header, read_volume
from scripts.images.write import write_volume
from scripts.inference.alarms import ClassSums
from scripts.inference.run import SegmentationWriter, images_to_segment, infer
from scripts.inference.segmenter import Segmentation, Segmenter
from tests.volume_files import dicom_slices, oblique, stored_as, touch, write_dicom

NAMES = ["background", "liver", "spleen"]


@pytest.fixture
def result() -> Segmentation:
    classes = np.zeros((4, 3, 2), np.uint8)
    classes[0], classes[1] = 1, 2
    sums = ClassSums(3)
    sums.add(torch.eye(3)[torch.as_tensor(classes).long()].movedim(-1, 0), torch.as_tensor(classes).long())
    return Segmentation("scans/a.nrrd", oblique(), classes, sums)


def volume(path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_label_volume_has_the_declared_values_on_the_grid_of_the_image(result, tmp_path) -> None:
    path = SegmentationWriter(tmp_path, NAMES, [0, 10, 300], checkpoint="model.pt").write(result, "a")
    assert path == tmp_path / "a_seg.nii.gz"
    np.testing.assert_array_equal(volume(path), np.array([0, 10, 300])[result.classes])
    np.testing.assert_allclose(nibabel.load(path).affine, oblique(), atol=1e-5)
    sidecar = json.loads((tmp_path / "a_seg.json").read_text())
    assert sidecar["labels"] == {"0": "background", "10": "liver", "300": "spleen"}
    assert (sidecar["image"], sidecar["checkpoint"], sidecar["confidence"]) == ("scans/a.nrrd", "model.pt", 1.0)


def test_only_the_volumes_of_a_result_are_written(result, tmp_path) -> None:
    SegmentationWriter(tmp_path, NAMES, postfix="").write(result, "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "a.json"}
    result.confidence = np.full((4, 3, 2), 0.5, np.float32)
    result.uncertainty = np.full((4, 3, 2), 0.25, np.float32)
    result.probabilities = np.full((4, 3, 2, 3), 1 / 3, np.float32)
    SegmentationWriter(tmp_path / "all", NAMES).write(result, "a")
    assert np.unique(volume(tmp_path / "all/a_confidence.nii.gz")) == 0.5
    assert np.unique(volume(tmp_path / "all/a_uncertainty.nii.gz")) == 0.25
    assert volume(tmp_path / "all/a_probabilities.nii.gz").shape == (4, 3, 2, 3)


def test_the_format_can_be_that_of_the_image(result, tmp_path) -> None:
    assert SegmentationWriter(tmp_path, NAMES, output_format="input").write(result, "a").name == "a_seg.nrrd"
    result.image = ["scans/t1.mha", "scans/t2.nii"]
    assert SegmentationWriter(tmp_path, NAMES, output_format="input").write(result, "a").name == "a_seg.mha"


def test_a_label_volume_says_what_its_values_are_called(result, tmp_path) -> None:
    path = SegmentationWriter(tmp_path, NAMES, [0, 10, 300]).write(result, "a")
    assert read_header(path).segments == {10: "liver", 300: "spleen"}


def test_3d_slicer_gets_a_segmentation(result, tmp_path) -> None:
    result.confidence = np.full((4, 3, 2), 0.5, np.float32)
    path = SegmentationWriter(tmp_path, NAMES, output_format="seg_nrrd").write(result, "a")
    assert {file.name for file in tmp_path.iterdir()} == {"a_seg.seg.nrrd", "a_seg.json", "a_confidence.nrrd"}
    header, voxels = read_volume(path)
    assert header.segments == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(voxels[0], result.classes)
    np.testing.assert_allclose(header.affine, oblique(), atol=1e-5)


def own_label(path, result) -> None:
    write_volume(path, result.classes, result.affine)


def resaved(path, result) -> None:
    """A file of this program after a correction, with its JSON file beside it."""
    path.write_bytes(SegmentationWriter(path.parent, NAMES).write(result, "a").read_bytes() + b"corrected")


def with_another_json_file(path, result) -> None:
    own_label(path, result)
    path.with_name("a_seg.json").write_text('{"sha256": "", "Manual": true}')


@pytest.mark.parametrize("made", [own_label, resaved, with_another_json_file])
def test_a_label_volume_of_someone_else_is_kept_and_named_before_any_work(made, result, tmp_path) -> None:
    path = tmp_path / "a_seg.nii.gz"
    made(path, result)
    before = path.read_bytes()
    segmented: list[str] = []

    def segmenter(image: str) -> Segmentation:
        segmented.append(image)
        return result

    with pytest.raises(UserError, match=r"1 of 2 .*\(a\)"):
        infer(["scans/a.nrrd", "scans/b.nrrd"], segmenter, SegmentationWriter(tmp_path, NAMES))
    assert path.read_bytes() == before and segmented == ["scans/b.nrrd"]
    assert str(path) in (tmp_path / "failed.csv").read_text()


def test_label_volumes_of_this_program_are_written_again(result, tmp_path) -> None:
    first, other = (SegmentationWriter(tmp_path, NAMES, output_format=form) for form in ("nifti", "input"))
    path = first.write(result, "a")
    kept = path.read_bytes()
    other.write(result, "a")  # a_seg.nrrd, with the same JSON file
    result.classes = 2 - result.classes
    first.check_case(result.image, "a")
    first.write(result, "a")
    assert path.read_bytes() != kept
    path.write_bytes(kept)  # as after an interruption before the new file was in place
    for writer in (first, other):
        writer.check_case(result.image, "a")


def test_dicom_seg_is_for_dicom_series(result, tmp_path) -> None:
    pytest.importorskip("highdicom", reason="requirements-dicom.txt is not installed")
    slices = dicom_slices(*stored_as(np.zeros((4, 3, 2), np.int16), oblique(), "LPS"))
    folder = write_dicom(tmp_path / "scan", slices)
    writer = SegmentationWriter(tmp_path / "out", NAMES, output_format="dicom_seg", checkpoint="model.pt")
    with pytest.raises(UserError, match=r"scans/a\.nrrd"):
        writer.check_case(result.image, "a")
    result.image, result.uncertainty = str(folder), np.zeros((4, 3, 2), np.float32)
    writer.check_case(result.image, "a")
    assert writer.write(result, "a").stat().st_size > 0
    assert {file.name for file in writer.output_dir.iterdir()} == {
        "a_seg.dcm", "a_seg.json", "a_uncertainty.nii.gz",
    }  # fmt: skip


def test_dicom_seg_without_its_packages_names_the_file_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match=r"requirements-dicom\.txt"):
        SegmentationWriter(tmp_path, NAMES, output_format="dicom_seg")


@pytest.mark.parametrize(
    ("options", "named"), [({"output_format": "dicom"}, "output_format"), ({"label_values": [0, 1]}, "label_values")]
)
def test_invalid_options_are_named(options, named, tmp_path) -> None:
    with pytest.raises(UserError, match=named):
        SegmentationWriter(tmp_path, NAMES, **options)


def scan(path, codes: tuple[int, int], shape=(6, 5, 4), unit="mm"):
    """A NIfTI file whose sform and qform differ and have these codes."""
    array = np.zeros(shape, np.float32)
    array[2:, 1:] = 1
    image = nibabel.Nifti1Image(array, np.diag([1.0, 1.5, 2.0, 1.0]))
    sform = oblique((1.0, 1.5, 2.0))
    image.set_sform(sform, code=codes[0])
    image.set_qform(np.diag([-1.0, -1.5, 2.0, 1.0]), code=codes[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return str(path)


def grid_of(path) -> dict:
    header = nibabel.load(path).header
    fields = (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "qoffset_x",
        "quatern_b",
        "quatern_c",
        "quatern_d",
    )
    unit = header.get_xyzt_units()[0]
    return {field: header[field].tolist() for field in fields} | {"pixdim": header["pixdim"][:4].tolist(), "unit": unit}


@pytest.mark.parametrize(
    ("codes", "ending", "unit"),
    [((0, 0), ".nii.gz", "mm"), ((0, 0), ".nii", "unknown"), ((2, 1), ".nii.gz", "mm"), ((0, 1), ".nii", "meter")],
)
def test_volumes_have_the_grid_fields_of_the_images_header(codes, ending, unit, tmp_path, caplog) -> None:
    image = scan(tmp_path / f"a{ending}", codes, unit=unit)
    segmenter = Segmenter(
        preprocessing=Compose([LoadImaged("image", reader=VolumeReader), EnsureChannelFirstd("image")]),
        inferer=SlidingWindowInferer((4, 4, 4)),
        predictor=lambda windows: torch.cat([0.5 - windows, windows - 0.5], dim=1),
        in_channels=1,
        label_names=NAMES[:2],
        confidence=True,
        probabilities=True,
    )
    writer = SegmentationWriter(tmp_path / "out", NAMES[:2])
    for name in ("a", "b"):
        path = writer.write(segmenter(image), name)
    np.testing.assert_array_equal(volume(path), volume(image))
    for made in (path, tmp_path / "out/b_confidence.nii.gz", tmp_path / "out/b_probabilities.nii.gz"):
        assert grid_of(made) == grid_of(image)
    warnings = [record.message for record in caplog.records if "directions" in record.message]
    assert len(warnings) == (codes == (0, 0))
    assert all(image in warning for warning in warnings)


def test_a_picture_without_a_third_voxel_size_becomes_a_volume_of_one_slice(tmp_path) -> None:
    picture = nibabel.Nifti1Image(np.zeros((6, 5), np.float32), None)
    nibabel.save(picture, tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", np.zeros((6, 5, 1), np.uint8), np.eye(4), tmp_path / "a.nii")
    header = nibabel.load(tmp_path / "b.nii").header
    assert (header["sform_code"], header["qform_code"], header["pixdim"][3]) == (0, 0, 1)


def test_labels_in_a_folder_of_images_are_left_out(tmp_path, caplog) -> None:
    labels = ["labels/a.nii.gz", "out/a_seg.nii.gz"]
    images = ["images/a.nii.gz", "images/a_mask_free.nii.gz"]
    touch(tmp_path, *images, *labels)

    def found(path=tmp_path, **options) -> list[str]:
        return [os.path.relpath(image, tmp_path) for image in images_to_segment(path, **options)]

    assert found() == images
    assert "2 of 4" in caplog.text and labels[0] in caplog.text
    assert found(pattern="a*.nii.gz") == sorted([*images, *labels]), "a pattern chooses"
    assert found(tmp_path / "labels") == labels[:1], "there is nothing else"
    assert images_to_segment([str(tmp_path / name) for name in labels]) == [str(tmp_path / name) for name in labels]


@pytest.mark.parametrize("form", ["nifti", "input"])
@pytest.mark.parametrize("folder", ["scans/out", "scans"])
def test_a_second_run_segments_nothing_that_the_first_has_written(folder, form, result, tmp_path, caplog) -> None:
    images = touch(tmp_path, "scans/a.nrrd", "scans/b.confidence.nrrd") / "scans"
    result.confidence = result.uncertainty = np.full((4, 3, 2), 0.5, np.float32)
    result.probabilities = np.full((4, 3, 2, 3), 1 / 3, np.float32)
    SegmentationWriter(tmp_path / folder, NAMES, output_format=form).write(result, "a")
    assert images_to_segment(images) == [str(images / "a.nrrd"), str(images / "b.confidence.nrrd")]
    assert "4 of 6" in caplog.text
    assert len(images_to_segment(images, "*a_*")) == 4, "a pattern chooses"


def test_files_of_channels_are_images_and_not_labels(tmp_path) -> None:
    touch(tmp_path, "labels/a.nii.gz", "images/a_0000.nii.gz", "images/a_0001.nii.gz")
    assert images_to_segment(tmp_path, in_channels=2) == [[f"{tmp_path}/images/a_000{i}.nii.gz" for i in range(2)]]
