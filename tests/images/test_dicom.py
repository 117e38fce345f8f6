# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices is read as one regular volume, or refused with an error that names it."""

from __future__ import annotations

import os
from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.errors import UserError
from scripts.images.read import exists, read_header, read_volume
from tests.volume_files import affine, dicom_slices, oblique, stored_as, volume, write_dicom

SHAPE = (6, 5, 12)
CT = {"0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2"}
SLOPE = b"\x28\0\x53\x10\2\0\0\0"  # the element Rescale Slope up to its value, two letters long
GOLDEN_DICOM = os.environ.get("GOLDEN_DICOM")  # a folder of 32 slices named 1.dcm to 32.dcm, 1 mm apart


@pytest.fixture
def slices():
    """Twelve slices with axes L, P, S, as scanners write them."""
    return dicom_slices(*stored_as(volume(SHAPE), affine(), "LPS"))


def refusal(folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_header(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder).split("#")[0] in message
    return message


def patch(file: Path, old: bytes, new: bytes) -> None:
    """Change bytes that the writer does not let callers choose."""
    content = file.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("matrix", [affine(), oblique()])
@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "ASL"])
def test_slices_are_ordered_and_placed_by_their_positions(tmp_path, matrix, axcodes):
    array, matrix = stored_as(volume(SHAPE), matrix, axcodes)
    header, voxels = read_volume(write_dicom(tmp_path / "scan", dicom_slices(array, matrix)))
    if np.linalg.det(matrix) * np.linalg.det(np.diag([-1, -1, 1])) < 0:  # slices are stored along their normal
        array, matrix = (
            array[:, :, ::-1],
            matrix @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, array.shape[2] - 1], [0, 0, 0, 1]],
        )
    assert header.shape == array.shape and header.channels == 1 and header.oriented
    np.testing.assert_array_equal(voxels, array[None])
    np.testing.assert_allclose(header.affine, matrix, atol=1e-5)


def test_names_of_files_do_not_matter(tmp_path, slices):
    plain = read_volume(write_dicom(tmp_path / "a", slices))[1]
    for each, name in zip(slices, "hcaebgdfkjil", strict=True):
        each.name = name  # without an ending, and in another order
    np.testing.assert_array_equal(read_volume(write_dicom(tmp_path / "b", slices))[1], plain)


def test_every_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path, slices):
    """As in PET. GDCM's series reader uses the type of the first slice for all and truncates fractions."""
    for each in slices:
        each.tags = {**CT, "0028|1052": "-7", "0028|1053": "1"}
        each.pixels = each.pixels - np.int16(7)
    folder = write_dicom(tmp_path / "scan", slices)
    for each in slices[1:]:
        patch(folder / each.name, SLOPE + b"1 ", SLOPE + b".5")
    header, voxels = read_volume(folder)
    assert header.dtype == voxels.dtype.name  # of all slices, not of the first
    expected = [slices[0].pixels, *((each.pixels + 7) * 0.5 - 7 for each in slices[1:])]
    np.testing.assert_array_equal(voxels[0], np.stack(expected, axis=-1))


@pytest.mark.parametrize("name", ["JPEG", "JPEG2000"])
def test_compressed_slices_are_read(tmp_path, name):
    slices = dicom_slices(volume((40, 32, 3)), affine())  # GDCM's JPEG 2000 encoder fails on a few pixels
    for each in slices:
        each.compression = getattr(itk.GDCMImageIOEnums, f"Compression_{name}")
    voxels = read_volume(write_dicom(tmp_path / "scan", slices))[1]
    np.testing.assert_array_equal(voxels[0], np.stack([each.pixels for each in slices], axis=-1))


def test_a_single_slice_is_a_volume_with_its_slice_thickness(tmp_path, slices):
    slices[0].tags = {"0018|0050": "4.5"}
    header = read_header(write_dicom(tmp_path / "scan", slices[:1]))
    assert header.shape == (6, 5, 1)
    assert header.spacing == pytest.approx((1.5, 2.0, 4.5))


def test_positions_rounded_to_a_hundredth_are_even(tmp_path, slices):
    for k, each in enumerate(slices):
        each.position = np.round([0, 0, k * 2 / 3], 2)
    assert read_header(write_dicom(tmp_path / "scan", slices)).spacing[2] == pytest.approx(2 / 3, abs=0.001)


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path, slices):
    other = dicom_slices(volume((4, 3, 2)), affine())
    for each in other:
        each.series, each.name, each.tags = "1.2.826.0.1.2", "b" + each.name, {"0008|103e": "localiser"}
    folder = write_dicom(tmp_path / "scan", slices + other)
    message = refusal(folder)
    assert "1.2.826.0.1.1 (" in message and "1.2.826.0.1.2 (localiser" in message
    assert f"{folder}#UID" in message
    assert read_header(f"{folder}#1.2.826.0.1.1").shape == SHAPE
    assert read_header(f"{folder}#1.2.826.0.1.2").shape == (4, 3, 2)
    assert exists(f"{folder}#1.2.826.0.1.2")
    assert "1.2.3" in refusal(f"{folder}#1.2.3")


def test_missing_slices_are_named_by_their_neighbours(tmp_path, slices):
    message = refusal(write_dicom(tmp_path / "scan", slices[:4] + slices[6:]))
    assert "4.dcm" in message and "7.dcm" in message and "7.5 mm" in message and "2.5 mm" in message


def test_a_missing_slice_of_three_is_seen(tmp_path, slices):
    message = refusal(write_dicom(tmp_path / "scan", [slices[0], slices[1], slices[3]]))
    assert "2.dcm" in message and "4.dcm" in message


@pytest.mark.parametrize("shift", [0.05, 0.4, 1.5])
def test_uneven_spacing_is_refused_and_not_averaged(tmp_path, slices, shift):
    for each in slices[7:]:
        each.position[2] += shift
    assert "uneven" in refusal(write_dicom(tmp_path / "scan", slices))


@pytest.mark.parametrize(("first", "factor"), [(6, 2), (7, 3), (4, 2)])
def test_a_series_that_changes_its_spacing_is_uneven_and_misses_no_slice(tmp_path, slices, first, factor):
    for k, each in enumerate(slices):
        each.position[2] = 2.5 * (k + (factor - 1) * max(0, k - first))
    assert "uneven" in refusal(write_dicom(tmp_path / "scan", slices))


def test_slowly_growing_gaps_are_uneven(tmp_path, slices):
    for k, each in enumerate(slices):
        each.position[2] = 2.5 * k + 0.01 * k**2
    assert "uneven" in refusal(write_dicom(tmp_path / "scan", slices))


def test_two_instances_at_one_position_are_refused(tmp_path, slices):
    slices[8].position = slices[3].position.copy()
    message = refusal(write_dicom(tmp_path / "scan", slices))
    assert "4.dcm" in message and "9.dcm" in message


def test_gantry_tilt_in_the_positions_is_refused_with_its_angle(tmp_path, slices):
    for k, each in enumerate(slices):
        each.position[1] += k * 2.5 * np.tan(np.radians(15.0))
    assert "15 degrees" in refusal(write_dicom(tmp_path / "scan", slices))


def test_gantry_tilt_that_is_only_in_a_tag_is_refused(tmp_path, slices):
    for each in slices:
        each.tags = {**CT, "0018|1120": "12.5"}
    assert "12.5 degrees" in refusal(write_dicom(tmp_path / "scan", slices))


@pytest.mark.parametrize(("number", "named"), [(6, " 6.dcm"), (12, " 11.dcm")])
def test_a_slice_shifted_sideways_is_refused(tmp_path, slices, number, named):
    slices[number - 1].position[0] += 3.0
    message = refusal(write_dicom(tmp_path / "scan", slices))
    assert named in message and "tilt" not in message


def test_an_oblique_series_with_a_tilt_tag_is_read_if_its_planes_are_tilted(tmp_path):
    slices = dicom_slices(*stored_as(volume(SHAPE), oblique(), "LPS"))
    for each in slices:
        each.tags = {**CT, "0018|1120": "20"}
    assert read_header(write_dicom(tmp_path / "scan", slices)).shape == SHAPE


def test_a_colour_image_is_refused(tmp_path, slices):
    folder = write_dicom(tmp_path / "scan", slices)
    picture = itk.image_from_array(np.zeros((1, 5, 6, 3), np.uint8), is_vector=True)
    picture.GetMetaDataDictionary()["0020|000e"] = slices[0].series
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    itk.ImageFileWriter[type(picture)].New(Input=picture, FileName=str(folder / "p.dcm"), ImageIO=io).Update()
    message = refusal(folder)
    assert "p.dcm" in message and "RGB" in message


def test_slices_of_different_size_are_refused(tmp_path, slices):
    slices[5].pixels = slices[5].pixels[:, :-1]
    message = refusal(write_dicom(tmp_path / "scan", slices))
    assert "6 x 5" in message and "6 x 4" in message and "6.dcm" in message


def test_slices_of_different_pixel_size_are_refused(tmp_path, slices):
    slices[5].spacing = (1.5, 2.1)
    message = refusal(write_dicom(tmp_path / "scan", slices))
    assert "pixel size" in message and "6.dcm" in message


def test_slices_of_different_orientation_are_refused(tmp_path, slices):
    slices[5].orientation = np.array([1, 0, 0, 0, 0, -1.0])
    message = refusal(write_dicom(tmp_path / "scan", slices))
    assert "orientation" in message and "6.dcm" in message


def test_a_slice_without_a_position_is_refused(tmp_path, slices):
    """Secondary captures have no position, and GDCM then puts all of them at 0."""
    folder = write_dicom(tmp_path / "scan", slices)
    patch(folder / "7.dcm", b"\x20\0\x32\0", b"\x20\0\x31\0")
    message = refusal(folder)
    assert "7.dcm" in message and "position" in message


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.2])
def test_a_truncated_slice_is_named_and_not_left_out(tmp_path, slices, kept):
    folder = write_dicom(tmp_path / "scan", slices)
    last = folder / "12.dcm"  # without it the rest would be an even volume
    last.write_bytes(last.read_bytes()[: int(kept * last.stat().st_size)])
    assert "12.dcm" in refusal(folder)


def test_an_empty_file_with_the_ending_of_a_slice_is_named(tmp_path, slices):
    folder = write_dicom(tmp_path / "scan", slices)
    (folder / "13.dcm").touch()
    assert "13.dcm" in refusal(folder)


def test_other_files_are_skipped_with_one_line_in_the_log(tmp_path, slices, caplog):
    plain = read_volume(write_dicom(tmp_path / "a", slices))[1]
    folder = write_dicom(tmp_path / "scan", slices)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(4000))
    (folder / "._3.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
    (folder / "notes.txt").write_text("taken on a Monday")
    (folder / "preview.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(300))
    # a report and a directory begin as slices do
    for name, storage in (("DICOMDIR", b"1.2.840.10008.1.3.10"), ("report", b"1.2.840.10008.5.1.4.1.1.88.11\0")):
        element = b"\x02\0\x02\0UI" + len(storage).to_bytes(2, "little") + storage
        (folder / name).write_bytes(bytes(128) + b"DICM" + element)
    (folder / "more").mkdir()
    with caplog.at_level("INFO", logger="dicom"):
        _, voxels = read_volume(folder)
    np.testing.assert_array_equal(voxels, plain)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dicom"]
    for name in (".DS_Store", "._3.dcm", "DICOMDIR", "notes.txt", "preview.jpg"):
        assert name in line


def test_a_folder_without_slices_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert refusal(tmp_path)


@pytest.mark.skipif(not GOLDEN_DICOM, reason="GOLDEN_DICOM names no folder")
def test_a_recorded_series_is_ordered_by_its_positions():
    header, voxels = read_volume(GOLDEN_DICOM)
    assert header.shape == (35, 51, 32)
    np.testing.assert_allclose(header.affine, [[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
    for number in (1, 2, 10, 32):  # names and positions have the same numbers
        plane = itk.array_from_image(itk.imread(str(Path(GOLDEN_DICOM, f"{number}.dcm"))))[0]
        np.testing.assert_array_equal(voxels[0, :, :, number - 1], plane.T)


def test_slices_with_low_values_shown_bright_are_refused_because_itk_inverts_them(tmp_path, slices) -> None:
    folder = write_dicom(tmp_path / "scan", slices)
    patch(folder / "3.dcm", b"MONOCHROME2", b"MONOCHROME1")
    assert "MONOCHROME1" in refusal(folder)
