# SPDX-License-Identifier: Apache-2.0
"""Enhanced multi-frame DICOM in, and DICOM SEG out, against highdicom, pydicom and ITK."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.errors import UserError
from scripts.images.dicom_seg import write_dicom_seg
from scripts.images.find import find_images
from scripts.images.read import read_header, read_volume
from tests.volume_files import LPS_TO_RAS, dicom_slices, oblique, stored_as, volume, write_dicom

pydicom = pytest.importorskip("pydicom", reason="requirements-dicom.txt is not installed")
hd = pytest.importorskip("highdicom", reason="requirements-dicom.txt is not installed")

SHAPE = (8, 5, 7)  # GDCM reads planes of single bits only if they fill whole bytes
CT = {"0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0028|1052": "-7", "0028|1053": "1"}
NAMES = ["background", "liver", "Milz größer"]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique CT of single slices, with voxels of 1.5 x 2 x 2.5 mm."""
    slices = dicom_slices(*stored_as(volume(SHAPE), oblique(), "LPS"))
    for each in slices:
        each.tags = CT
    return write_dicom(tmp_path / "series", slices)


@pytest.fixture
def enhanced(series: Path, tmp_path: Path) -> Path:
    """The same volume in one file, which highdicom made."""
    empty = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "Manufacturer")
    slices = []
    for number, file in enumerate(sorted(series.iterdir(), key=lambda file: int(file.stem)), start=1):
        one = pydicom.dcmread(file)
        for name in (*empty, "StudyDate", "StudyTime"):
            if name not in one:
                setattr(one, name, "")
        one.SeriesNumber, one.InstanceNumber, one.FrameOfReferenceUID = 1, number, "1.2.3"
        one.ImageType, one.SliceThickness = ["ORIGINAL", "PRIMARY"], 2.5
        slices.append(one)
    made = hd.legacy.LegacyConvertedEnhancedCTImage(slices, "1.2.3.4", 1, "1.2.3.5", 1)
    (tmp_path / "enhanced").mkdir()
    made.save_as(tmp_path / "enhanced/scan.dcm")
    return tmp_path / "enhanced"


def change(folder: Path, work) -> Path:
    """Rewrite the multi-frame file after `work(dataset)`."""
    dataset = pydicom.dcmread(folder / "scan.dcm")
    work(dataset)
    dataset.save_as(folder / "scan.dcm")
    return folder


def frames(dataset):
    return dataset.PerFrameFunctionalGroupsSequence


def test_the_frames_of_a_file_are_the_volume_of_the_single_slices(series, enhanced) -> None:
    header, voxels = read_volume(series)
    of_frames, same_voxels = read_volume(enhanced)
    np.testing.assert_array_equal(same_voxels, voxels)
    np.testing.assert_allclose(of_frames.affine, header.affine, atol=1e-4)
    assert of_frames.shape == header.shape and of_frames.dtype == same_voxels.dtype.name
    assert find_images(enhanced) == [str(enhanced)]


def test_a_file_of_gdcm_is_read_as_by_itk(tmp_path) -> None:
    scan = dicom_slices(volume(SHAPE), oblique())[:1]
    scan[0].pixels, scan[0].tags = volume(SHAPE), {"0008|0016": "1.2.840.10008.5.1.4.1.1.4.1"}  # enhanced MR
    header, voxels = read_volume(write_dicom(tmp_path / "scan", scan))
    image = itk.imread(str(tmp_path / "scan/1.dcm"))
    np.testing.assert_array_equal(voxels[0], itk.array_from_image(image).T)
    lps = itk.array_from_matrix(image.GetDirection()) * list(image.GetSpacing())
    np.testing.assert_allclose(LPS_TO_RAS[:3, :3] @ lps, header.affine[:3, :3], atol=1e-4)
    np.testing.assert_allclose(LPS_TO_RAS[:3, :3] @ list(image.GetOrigin()), header.affine[:3, 3], atol=1e-3)


def test_frames_are_ordered_by_position_and_rescaled_one_by_one(series, enhanced) -> None:
    expected = read_volume(series)[1] + 7.0  # before rescaling
    slopes = {}

    def shuffle(dataset) -> None:
        order = [3, 0, 6, 2, 5, 1, 4]
        groups = [frames(dataset)[k] for k in order]
        dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[order]).tobytes()
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence  # per frame, as some scanners write them
        for k, group in enumerate(groups):
            rescale = pydicom.Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = str(1 + k / 2), "-3", "US"
            group.PixelValueTransformationSequence, group.PixelMeasuresSequence = [rescale], measures
            slopes[tuple(group.PlanePositionSequence[0].ImagePositionPatient)] = 1 + k / 2
        dataset.PerFrameFunctionalGroupsSequence = groups
        dataset.SharedFunctionalGroupsSequence[0].pop("PixelValueTransformationSequence", None)

    header, voxels = read_volume(change(enhanced, shuffle))
    places = (LPS_TO_RAS @ header.affine @ [[0] * 7, [0] * 7, range(7), [1] * 7])[:3].T
    for plane, place in enumerate(places):
        slope = next(slope for at, slope in slopes.items() if np.allclose(at, place, atol=1e-3))
        np.testing.assert_array_equal(voxels[0, ..., plane], expected[0, ..., plane] * slope - 3)


def move(dataset, number: int, millimetres: float) -> None:
    place = frames(dataset)[number].PlanePositionSequence[0]
    row, column = np.reshape(
        dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0][0x200037].value, (2, 3)
    )
    place.ImagePositionPatient = list(np.array(place.ImagePositionPatient) + millimetres * np.cross(row, column))


@pytest.mark.parametrize(("millimetres", "words"), [(1.0, "uneven"), (2.5, "one position")])
def test_frames_off_an_even_grid_are_refused_by_number(millimetres, words, enhanced) -> None:
    change(enhanced, lambda dataset: move(dataset, 3, millimetres))
    with pytest.raises(UserError, match=words) as caught:
        read_header(enhanced)
    assert words == "uneven" or "scan.dcm (frame 4)" in str(caught.value)


def test_frames_without_functional_groups_are_refused(enhanced) -> None:
    def strip(dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence

    with pytest.raises(UserError, match=r"scan\.dcm is a multi-frame"):
        read_header(change(enhanced, strip))


def test_without_pydicom_the_file_to_install_is_named(enhanced, series, tmp_path, monkeypatch) -> None:
    for name in ("pydicom", "highdicom"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"scan\.dcm.*requirements-dicom\.txt"):
        read_header(enhanced)
    assert read_header(series).shape == SHAPE
    with pytest.raises(UserError, match=r"requirements-dicom\.txt"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros(SHAPE, np.uint8), str(series), NAMES, "model.pt")


@pytest.fixture
def classes() -> np.ndarray:
    """Class 2 touches the first plane; the last two planes are empty."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 1:4, 2:5] = 1
    array[4, 2, :3] = 2
    return array


@pytest.mark.parametrize("source", ["series", "enhanced"])
def test_segments_lie_where_the_classes_are(source, classes, tmp_path, request) -> None:
    folder = request.getfixturevalue(source)
    header = read_header(folder)
    write_dicom_seg(tmp_path / "a.dcm", classes, str(folder), NAMES, ["a.pt", "b.pt"])
    seg = hd.seg.segread(tmp_path / "a.dcm")
    found = {seg.get_segment_description(n).segment_label: n for n in seg.segment_numbers}
    assert found == {"liver": 1, "Milz größer": 2}
    first = pydicom.dcmread(next(folder.iterdir()))
    assert seg.StudyInstanceUID == first.StudyInstanceUID and seg.SeriesInstanceUID != first.SeriesInstanceUID
    # Every voxel of a structure, by the affine that highdicom gives to it, is at a voxel of its class.
    volume_of = seg.get_volume(combine_segments=True)
    for number in (1, 2):
        index = np.argwhere(volume_of.array == number)
        assert len(index) == (classes == number).sum()
        places = LPS_TO_RAS @ volume_of.affine @ np.c_[index, np.ones(len(index))].T
        own = np.linalg.inv(header.affine) @ places
        assert np.linalg.norm(header.affine[:3, :3] @ (own - own.round())[:3], axis=0).max() < 0.01
        assert (classes[tuple(own[:3].round().astype(int))] == number).all()


def test_itk_reads_a_segmentation_on_the_grid_of_the_series(series, classes, tmp_path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", np.minimum(classes, 1), str(series), NAMES[:2], "model.pt")
    image = itk.imread(str(tmp_path / "a.dcm"))
    lps = itk.array_from_matrix(image.GetDirection()) * list(image.GetSpacing())
    index = np.argwhere(itk.array_from_image(image).T > 0)
    places = (lps @ index.T).T + list(image.GetOrigin())
    header = read_header(series)
    expected = (LPS_TO_RAS @ header.affine @ np.c_[np.argwhere(classes > 0), np.ones((classes > 0).sum())].T)[:3].T
    assert np.abs(np.sort(places, axis=0) - np.sort(expected, axis=0)).max() < 0.01


def test_each_frame_names_the_slice_it_lies_on(series, classes, tmp_path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", classes, str(series), NAMES, "model.pt")
    positions = {d.SOPInstanceUID: d.ImagePositionPatient for d in map(pydicom.dcmread, series.iterdir())}
    groups = pydicom.dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence
    assert len(groups) == 6  # three planes of each structure
    for group in groups:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, positions[source], atol=1e-4)


def test_a_case_without_a_structure_and_a_name_that_is_too_long_are_written(series, tmp_path) -> None:
    write_dicom_seg(tmp_path / "a.dcm", np.zeros(SHAPE, np.uint8), str(series), ["background", "x" * 80], "model.pt")
    seg = hd.seg.segread(tmp_path / "a.dcm")
    assert seg.NumberOfFrames == SHAPE[2] and not seg.pixel_array.any()
    assert seg.get_segment_description(1).segment_label == "x" * 64


def test_the_log_holds_no_identifiers_of_the_study(series, classes, tmp_path, caplog) -> None:
    logging.getLogger("highdicom").setLevel(logging.NOTSET)
    with caplog.at_level(logging.INFO):
        write_dicom_seg(tmp_path / "a.dcm", classes, str(series), NAMES, "model.pt")
    assert [record for record in caplog.records if record.name.startswith("highdicom")] == []
