# SPDX-License-Identifier: Apache-2.0
"""NIfTI, NRRD and MetaImage files of the same volume give the same voxels and header."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest

from scripts.errors import UserError
from scripts.images.read import read_header, read_volume
from tests.volume_files import LPS_TO_RAS, affine, oblique, save, stored_as, volume, write_other_dicom

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
CHANNELS = np.arange(2 * 4 * 3 * 5, dtype=np.int16).reshape(2, 4, 3, 5)  # (C, X, Y, Z)
LPS = np.diag([-1.0, -2.0, 3.0, 1.0])  # voxels of 1 x 2 x 3 mm on axes to L, P, S, as RAS
DIRECTIONS = "(1,0,0) (0,2,0) (0,0,3)"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_volume(path)[1]
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "0x" not in message
    assert "/image." not in message.replace(str(path), ""), "a temporary link is named"
    return message


def nrrd(path: Path, data: np.ndarray, **fields: str) -> Path:
    """Write a NRRD header by hand; the first axis of `data` runs fastest, as in the file."""
    types = {"int8": "int8", "int16": "short", "int32": "int", "int64": "int64", "uint8": "uchar", "float32": "float"}
    lines = ["NRRD0005", f"type: {types[data.dtype.name]}", f"dimension: {data.ndim}"]
    lines += [f"sizes: {' '.join(map(str, data.shape))}", "endian: little", "encoding: raw"]
    space = {"space": fields.pop("space")} if "space" in fields else {}  # must stand in front of the directions
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in {**space, **fields}.items()]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + data.tobytes(order="F"))
    return path


# ------------------------------------------------------------------ the same from every format


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "ASL"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_voxels_and_the_affine(tmp_path, ending, axcodes):
    array, matrix = stored_as(volume(), oblique(), axcodes)
    header, voxels = read_volume(save(tmp_path / f"a{ending}", array, matrix))
    assert (header.shape, header.channels, header.dtype, header.oriented) == (array.shape, 1, "int16", True)
    assert header.axcodes == axcodes
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, array[None])
    np.testing.assert_allclose(header.affine, matrix, atol=1e-4)  # NIfTI has 32 bits


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "float32"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_numbers_keep_their_type(tmp_path, ending, dtype):
    """ITK's Python package has no images of int8 and int64, which segmentation tools write."""
    array = (volume((4, 3, 2)) + 90).astype(dtype)
    path = tmp_path / f"a{ending}"
    if ending == ".nrrd":
        nrrd(path, array, space="left-posterior-superior", space_directions=DIRECTIONS)
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine(), dtype=dtype), path)
    header, voxels = read_volume(path)
    assert header.dtype == voxels.dtype.name == dtype
    np.testing.assert_array_equal(voxels[0], array)


@pytest.mark.parametrize("name", ["A SCAN.NII.GZ", "a.b.Nii", "schädel ü.NRRD", "x.NHDR", "x.MHA", "x y.MHD"])
def test_endings_in_upper_case_blanks_dots_and_other_letters_do_not_matter(tmp_path, name):
    ending = next(e for e in ENDINGS if name.lower().endswith(e))
    save(tmp_path / f"plain{ending}", volume(), affine())
    shutil.copy(tmp_path / f"plain{ending}", tmp_path / name)  # detached data still lies beside it
    np.testing.assert_array_equal(read_volume(tmp_path / name)[1][0], volume())


def test_big_endian_numbers_are_turned_round(tmp_path):
    image = nibabel.Nifti1Image(volume(), affine(), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "a.nii")
    voxels = read_volume(tmp_path / "a.nii")[1]
    assert voxels.dtype.isnative
    np.testing.assert_array_equal(voxels[0], volume())


def test_slope_and_intercept_of_a_nifti_are_applied(tmp_path):
    image = nibabel.Nifti1Image(volume(), affine())
    image.header.set_slope_inter(0.5, -3.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz")[1][0], volume() * 0.5 - 3.0)


@pytest.mark.parametrize(("unit", "millimetres"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_of_a_nifti_are_in_the_unit_that_it_names(tmp_path, unit, millimetres):
    image = nibabel.Nifti1Image(volume(), affine())
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(header.affine[:3], affine()[:3] * millimetres, rtol=1e-6)


# ------------------------------------------------------------------ orientation that is not there


def bare_nifti(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms(spacing)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    return path


def test_files_without_orientation_are_read_as_l_p_s_whatever_the_format(tmp_path):
    array, spacing = volume((4, 3, 5)), (1.0, 2.0, 3.0)
    headers = [
        read_header(bare_nifti(tmp_path / "a.nii.gz", array, spacing)),
        read_header(nrrd(tmp_path / "a.nrrd", array, spacings="1 2 3")),
    ]
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 3\nDimSize = 4 3 5\nElementType = MET_SHORT\nElementSpacing = 1 2 3\nElementDataFile = LOCAL\n"
        + array.tobytes(order="F")
    )
    headers.append(read_header(tmp_path / "a.mha"))
    for header in headers:
        assert not header.oriented
        assert header.spacing == pytest.approx(spacing)
        np.testing.assert_allclose(header.affine, LPS, atol=1e-6)


def test_itk_reads_a_nifti_without_orientation_as_we_do(tmp_path):
    path = bare_nifti(tmp_path / "a.nii.gz", volume((4, 3, 5)), (1.0, 2.0, 3.0))
    image = itk.imread(str(path))
    direction = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    np.testing.assert_allclose(read_header(path).affine[:3, :3], LPS_TO_RAS[:3, :3] @ direction)


def test_a_nrrd_with_directions_but_no_named_space_is_not_oriented(tmp_path):
    header = read_header(nrrd(tmp_path / "a.nrrd", volume((4, 3, 5)), space_dimension="3", space_directions=DIRECTIONS))
    assert not header.oriented
    np.testing.assert_allclose(header.affine, LPS)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))],
)
def test_a_nrrd_is_read_in_the_space_that_it_names(tmp_path, space, signs):
    fields = {"space": space, "space_directions": DIRECTIONS, "space_origin": "(7,8,9)"}
    header = read_header(nrrd(tmp_path / "a.nrrd", volume((4, 3, 5)), **fields))
    expected = np.diag([*np.multiply(signs, (1.0, 2.0, 3.0)), 1.0])
    expected[:3, 3] = np.multiply(signs, (7.0, 8.0, 9.0))
    assert header.oriented
    np.testing.assert_allclose(header.affine, expected)


# ------------------------------------------------------------------ axes that are not three


def four_axes(path: Path) -> Path:
    array = np.moveaxis(CHANNELS, 0, -1)
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    itk.imwrite(image, str(path))
    return path


def vector_image(path: Path) -> Path:
    image = itk.image_from_array(np.ascontiguousarray(CHANNELS.transpose(3, 2, 1, 0)), ttype=itk.VectorImage[itk.SS, 3])
    itk.imwrite(image, str(path))
    return path


@pytest.mark.parametrize("write", [four_axes, vector_image])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_fourth_axis_or_several_values_a_voxel_are_channels(tmp_path, ending, write):
    header, voxels = read_volume(write(tmp_path / f"a{ending}"))
    assert header.shape == (4, 3, 5) and header.channels == 2
    np.testing.assert_array_equal(voxels, CHANNELS)
    np.testing.assert_allclose(header.affine, LPS_TO_RAS)


@pytest.mark.parametrize("kind", ["vector", "list", "domain", "time", None])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("detached", [False, True])
def test_the_axis_of_a_nrrd_without_a_direction_is_that_of_channels(tmp_path, kind, first, detached):
    data = CHANNELS if first else np.moveaxis(CHANNELS, 0, -1)
    fields = {"space": "left-posterior-superior"}
    fields["space_directions"] = f"none {DIRECTIONS}" if first else f"{DIRECTIONS} none"
    if kind:
        fields["kinds"] = " ".join([kind, "domain", "domain", "domain"] if first else ["domain"] * 3 + [kind])
    path = nrrd(tmp_path / "a b.nrrd", data, **fields)
    if detached:
        head, _, voxels = path.read_bytes().partition(b"\n\n")
        (tmp_path / "a b.raw").write_bytes(voxels)
        path = tmp_path / "a b.nhdr"
        path.write_bytes(head + b"\ndata file: a b.raw\n")
    header, voxels = read_volume(path)
    assert header.shape == (4, 3, 5) and header.channels == 2 and header.oriented
    np.testing.assert_array_equal(voxels, CHANNELS)
    np.testing.assert_allclose(header.affine, LPS)


def test_the_one_axis_without_a_direction_is_found_in_a_compressed_nrrd(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", CHANNELS, space="left-posterior-superior", space_directions=f"none {DIRECTIONS}")
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head.replace(b"encoding: raw", b"encoding: gzip") + b"\n\n" + gzip.compress(voxels))
    np.testing.assert_array_equal(read_volume(path)[1], CHANNELS)


@pytest.mark.parametrize("shape", [(4, 3, 5, 1), (4, 3, 5, 1, 1), (4, 3), (4, 3, 1), (4, 3, 1, 1)])
def test_axes_of_one_voxel_behind_the_third_are_dropped_and_a_picture_is_one_slice(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    paths = [tmp_path / "a.nii.gz"]
    nibabel.save(nibabel.Nifti1Image(array, affine()), paths[0])
    if len(shape) < 5:
        paths += [tmp_path / "a.mha", tmp_path / "a.nrrd"]
        for path in paths[1:]:
            itk.imwrite(itk.image_from_array(np.ascontiguousarray(array.T)), str(path))
    x, y, z = (*shape, 1)[:3]
    for path in paths:
        header, voxels = read_volume(path)
        assert header.shape == (x, y, z) and header.channels == 1
        np.testing.assert_array_equal(voxels, array.reshape(1, x, y, z))
        assert abs(np.linalg.det(header.affine)) > 0.1


def test_a_picture_of_an_oblique_plane_has_a_third_axis_perpendicular_to_it(tmp_path):
    matrix = oblique()
    matrix[:3, 2] = 0
    image = nibabel.Nifti1Image(np.zeros((4, 3), np.float32), None)
    image.set_sform(matrix, 1)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_header(tmp_path / "a.nii").affine
    np.testing.assert_allclose(found[:3, :2].T @ found[:3, 2], 0, atol=1e-6)
    assert np.linalg.norm(found[:3, 2]) == pytest.approx(1.0)


def test_channels_of_two_kinds_are_refused_with_the_axes(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 5, 2, 3), np.float32), affine()), tmp_path / "a.nii.gz")
    message = refusal(tmp_path / "a.nii.gz")
    assert "4 x 3 x 5 x 2 x 3" in message


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_colours_are_refused(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".nrrd":
        kinds = "RGB-color domain domain domain"
        nrrd(path, np.zeros((3, 4, 3, 5), np.uint8), space="LPS", space_directions=f"none {DIRECTIONS}", kinds=kinds)
    else:
        rgb = np.zeros((4, 3, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(rgb, affine()), path)
    assert "RGB" in refusal(path)


def test_complex_numbers_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 5), np.complex64), affine()), tmp_path / "a.nii")
    assert "complex" in refusal(tmp_path / "a.nii")


# ------------------------------------------------------------------ files that cannot be read


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [0.0, 0.7])
def test_a_truncated_file_is_refused_by_name(tmp_path, ending, kept):
    path = save(tmp_path / f"a{ending}", np.random.default_rng(0).normal(size=(20, 21, 22)), affine())
    data = tmp_path / "a.raw" if ending in (".nhdr", ".mhd") and kept else path
    data.write_bytes(data.read_bytes()[: int(kept * data.stat().st_size)])
    assert refusal(path)


@pytest.mark.parametrize("place", [0.4, 0.97])
def test_damage_that_only_the_checksum_detects_is_refused_by_name(tmp_path, place):
    path = save(tmp_path / "a.nii.gz", volume((31, 20, 11)), affine())
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))  # unpacks whatever it holds
    content[int(len(content) * place)] ^= 255
    path.write_bytes(content)
    assert refusal(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_another_kind_with_an_image_ending_is_refused_by_name(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text("<html>404 not found</html>" * 20)
    assert refusal(tmp_path / f"a{ending}")


def test_a_file_of_no_image_format_is_refused_with_those_that_can_be_read(tmp_path):
    (tmp_path / "a.png").touch()
    message = refusal(tmp_path / "a.png")
    assert all(ending in message for ending in ENDINGS) and "DICOM" in message


def test_a_missing_path_is_named(tmp_path):
    assert refusal(tmp_path / "nowhere.nii.gz")


def test_voxels_without_a_size_are_refused(tmp_path):
    image = nibabel.Nifti1Image(volume(), None)
    image.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("offset", "form", "values"),
    [
        (42, "<3h", (9, 0, 5)),  # dim[1] to dim[3] of a NIfTI-1 header
        (42, "<3h", (9, -7, 5)),
        (280, "<4f", (0.0, 0.0, 0.0, 0.0)),  # srow_x: no extent along the first axis
        (280, "<4f", (float("nan"), 0.0, 0.0, 0.0)),
        (0, "<i", (0,)),  # sizeof_hdr and magic: no NIfTI
    ],
    ids=["no voxels", "negative number of voxels", "no extent", "NaN in the affine", "no NIfTI header"],
)
def test_an_impossible_nifti_header_is_refused_by_name(tmp_path, offset, form, values):
    path = save(tmp_path / "a.nii.gz", volume(), affine())
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, content, offset, *values)
    if offset == 0:
        content[344:348] = b"n+9\0"
    path.write_bytes(gzip.compress(bytes(content)))
    assert refusal(path)


def test_a_folder_and_a_link_to_nothing_under_an_image_ending_are_named(tmp_path):
    (tmp_path / "a.nii.gz").mkdir()
    (tmp_path / "b.nii.gz").symlink_to("gone.nii.gz")
    assert refusal(tmp_path / "a.nii.gz")
    assert refusal(tmp_path / "b.nii.gz")


def write_with_nibabel(folder: Path, ending: str, array: np.ndarray, matrix: np.ndarray) -> Path:
    kind = {".img": nibabel.Nifti1Pair, ".mgz": nibabel.MGHImage, ".mgh": nibabel.MGHImage}[ending.lower()]
    nibabel.save(kind(array, matrix), folder / f"a{ending}")
    return folder / f"a{ending}"


@pytest.mark.parametrize("ending", [".img", ".IMG", ".mgz", ".mgh"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_a_pair_and_freesurfers_format_are_read_as_any_other(tmp_path, ending, kind):
    array = (volume() % 100).astype(kind)
    header, voxels = read_volume(write_with_nibabel(tmp_path, ending, array, oblique()))
    np.testing.assert_array_equal(voxels[0], array)
    np.testing.assert_allclose(header.affine, oblique(), atol=1e-4)
    assert header.oriented


def test_either_file_of_a_pair_can_be_named_and_a_missing_half_is_refused(tmp_path):
    path = write_with_nibabel(tmp_path, ".img", volume(), oblique())
    np.testing.assert_array_equal(read_volume(path.with_suffix(".hdr"))[1], read_volume(path)[1])
    path.with_suffix(".hdr").unlink()
    with pytest.raises(UserError, match=r"a\.img"):
        read_volume(path)


@pytest.mark.parametrize(("image", "header"), [(".IMG", ".hdr"), (".img", ".HDR"), (".Img", ".Hdr")])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage])
def test_the_endings_of_a_pair_may_be_in_any_case(tmp_path, image, header, kind):
    nibabel.save(kind(volume(), affine()), tmp_path / "a.img")
    (tmp_path / "a.img").rename(tmp_path / f"a{image}")
    (tmp_path / "a.hdr").rename(tmp_path / f"a{header}")
    for name in (image, header):
        found, voxels = read_volume(tmp_path / f"a{name}")
        np.testing.assert_array_equal(voxels[0], volume())
        assert found.path == str(tmp_path / f"a{name}") and found.spacing == pytest.approx((1.5, 2.0, 2.5))


def test_analyze_does_not_state_directions(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(volume(), np.diag([-1.5, 2.0, 2.5, 1.0])), tmp_path / "a.img")
    header, voxels = read_volume(tmp_path / "a.img")
    np.testing.assert_array_equal(voxels[0], volume())
    assert (header.oriented, header.spacing, header.axcodes) == (False, (1.5, 2.0, 2.5), "LPS")


@pytest.mark.parametrize(
    ("written", "named"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii"), ("a.nii", "b.NII.GZ"), ("a.mgh", "b.mgz")]
)
def test_data_are_unpacked_by_their_first_bytes_whatever_the_name_says(tmp_path, written, named):
    image = nibabel.MGHImage if written.endswith("mgh") else nibabel.Nifti1Image
    nibabel.save(image(volume().astype(np.float32), affine()), tmp_path / written)
    (tmp_path / written).rename(tmp_path / named)
    header, voxels = read_volume(tmp_path / named)
    assert header.path == str(tmp_path / named)
    np.testing.assert_array_equal(voxels[0], volume())
    np.testing.assert_allclose(header.affine, affine(), atol=1e-4)


@pytest.mark.parametrize("name", ["rt.dcm", "seg.dcm"])
def test_dicom_structures_are_named_as_what_they_are(tmp_path, name):
    write_other_dicom(tmp_path)
    for place in (tmp_path / name, tmp_path / "alone"):
        if place.name == "alone":
            place.mkdir()
            (tmp_path / name).rename(place / name)
        with pytest.raises(UserError, match=r"RTSTRUCT|SEG") as caught:
            read_header(place)
        assert str(place) in str(caught.value)
