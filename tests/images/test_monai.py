# SPDX-License-Identifier: Apache-2.0
"""The reader for MONAI's `LoadImaged`: array, affine and channel axis are the same for every format."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientationd

from scripts.errors import UserError, root_user_error
from scripts.images.monai import VolumeReader, label_dtype
from tests.volume_files import affine, dicom_slices, oblique, save, stored_as, volume, write_dicom

ROOT = Path(__file__).resolve().parents[2]
READER = "scripts.images.monai.VolumeReader"
ENDINGS = (".nii.gz", ".nrrd", ".mha")


def write(folder: Path, form: str, array: np.ndarray, matrix: np.ndarray) -> str:
    """A file with the ending `form`, or a folder of slices."""
    if form == "dicom":
        return str(write_dicom(folder / "series", dicom_slices(array, matrix)))
    return str(save(folder / f"scan{form}", array, matrix))


def smooth(shape: tuple[int, int, int] = (14, 12, 10)) -> np.ndarray:
    """An image without symmetries."""
    x, y, z = np.indices(shape)
    return (300 * np.sin(x / 5) + 20 * y + 3 * z * z).astype(np.int16)


def structures(shape: tuple[int, int, int] = (14, 12, 10)) -> np.ndarray:
    label = np.zeros(shape, np.int16)
    label[2:7, 3:9, 1:4], label[8:12, 2:5, 5:9] = 1, 2
    return label


@pytest.fixture(scope="module")
def sample():
    """The deterministic transforms of configs/train.yaml, applied to the files of a case."""
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs/train.yaml")))
    parser["spacing"], parser["label_names"] = [2.0, 1.5, 3.0], ["background", "a", "b"]
    parser.parse()
    return Compose(parser.get_parsed_content("train::deterministic_transforms"))


@pytest.fixture(scope="module")
def expected(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return sample(
        {
            "image": write(folder, ".nii.gz", smooth(), oblique()),
            "label": write(folder / "label", ".nii.gz", structures(), oblique()),
        }
    )


def test_the_reference_itself_is_resampled_to_ras(expected):
    assert expected["image"].pixdim.tolist() == pytest.approx([2.0, 1.5, 3.0])
    assert sorted(expected["label"].unique().tolist()) == [0, 1, 2]
    assert len(expected["image"].unique()) > 500


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "ASL"])
@pytest.mark.parametrize("form", [*ENDINGS, "dicom"])
def test_a_volume_gives_the_same_training_sample_from_every_format_and_storage_order(
    tmp_path, sample, expected, form, axcodes
):
    label_form = ".nrrd" if form == "dicom" else form
    made = sample(
        {
            "image": write(tmp_path, form, *stored_as(smooth(), oblique(), axcodes)),
            "label": write(tmp_path / "label", label_form, *stored_as(structures(), oblique(), axcodes)),
        }
    )
    for key in ("image", "label"):
        assert made[key].shape == expected[key].shape
        torch.testing.assert_close(made[key].affine, expected[key].affine, atol=1e-3, rtol=0)
    # positions of 32 or of 9 digits move an image by less than a thousandth of its spread
    torch.testing.assert_close(made["image"].as_tensor(), expected["image"].as_tensor(), atol=2e-3, rtol=0)
    torch.testing.assert_close(made["label"].as_tensor(), expected["label"].as_tensor(), atol=0, rtol=0)


def test_a_volume_without_orientation_is_read_as_lps(tmp_path, sample):
    samples = []
    for name, code in (("said", 1), ("bare", 0)):
        for key, array in (("image", smooth()), ("label", structures())):
            stored, matrix = stored_as(array, affine(), "LPS")
            image = nibabel.Nifti1Image(stored, matrix)
            image.set_sform(matrix, code)
            image.set_qform(matrix, code)
            nibabel.save(image, tmp_path / f"{name}_{key}.nii.gz")
        samples.append(sample({key: str(tmp_path / f"{name}_{key}.nii.gz") for key in ("image", "label")}))
    for key in ("image", "label"):
        torch.testing.assert_close(samples[1][key].as_tensor(), samples[0][key].as_tensor(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", [*ENDINGS, "dicom"])
def test_an_image_has_its_channels_first_and_names_its_file(tmp_path, form):
    array, matrix = stored_as(volume(), affine(), "LPS")
    path = write(tmp_path, form, array, matrix)
    image = Compose([LoadImaged("image", reader=READER), EnsureChannelFirstd("image")])({"image": path})["image"]
    assert image.shape == (1, *array.shape) and image.dtype == torch.float32
    assert image.meta["filename_or_obj"] == path
    np.testing.assert_allclose(image.affine, matrix, atol=1e-5)
    np.testing.assert_array_equal(image[0].numpy(), array)
    at_once = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(path)
    assert torch.equal(at_once.as_tensor(), image.as_tensor())


def test_this_reader_and_monais_agree_on_a_nifti_file(tmp_path):
    path = write(tmp_path, ".nii.gz", volume(), oblique())
    chains = [
        Compose(
            [
                LoadImaged("image", reader=reader),
                EnsureChannelFirstd("image"),
                Orientationd("image", "RAS", labels=None),
            ]
        )
        for reader in (READER, None)
    ]
    ours, theirs = (chain({"image": path})["image"] for chain in chains)
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert torch.equal(ours.affine, theirs.affine)


def test_a_list_of_files_of_any_format_becomes_channels_in_its_order(tmp_path):
    two = np.stack([volume() + 2, volume() + 3])
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(two, 0, -1), affine()), tmp_path / "two.nii.gz")
    paths = [
        write(tmp_path / "a", ".nrrd", volume(), affine()),
        write(tmp_path / "b", ".mha", volume() + 1, affine()),
        str(tmp_path / "two.nii.gz"),
    ]
    image = Compose([LoadImaged("image", reader=READER), EnsureChannelFirstd("image")])({"image": paths})["image"]
    np.testing.assert_array_equal(image.numpy(), np.stack([volume() + k for k in range(4)]))
    assert image.meta["filename_or_obj"] == paths[0]


@pytest.mark.parametrize(("shift", "refused"), [(0.009, False), (0.011, True)])
def test_grids_of_channels_must_agree_to_a_hundredth_of_a_millimetre(tmp_path, shift, refused):
    other = affine()
    other[1, 3] += shift
    paths = [write(tmp_path / "a", ".mha", volume(), affine()), write(tmp_path / "b", ".mha", volume(), other)]
    load = LoadImage(reader=READER)
    if not refused:
        assert load(paths).shape[0] == 2
        return
    with pytest.raises(UserError, match=r"b/scan\.mha .*a/scan\.mha"):
        load(paths)


def test_a_difference_of_spacing_is_measured_at_the_far_corner(tmp_path):
    other = affine((1.5, 2.0, 2.503))  # 0.003 mm a slice, 0.012 mm over four
    paths = [write(tmp_path / "a", ".mha", volume(), affine()), write(tmp_path / "b", ".mha", volume(), other)]
    with pytest.raises(UserError, match=r"b/scan\.mha .*a/scan\.mha"):
        LoadImage(reader=READER)(paths)


def test_channels_of_different_size_are_refused(tmp_path):
    paths = [
        write(tmp_path / "a", ".mha", volume(), affine()),
        write(tmp_path / "b", ".nrrd", volume((9, 7, 6)), affine()),
    ]
    with pytest.raises(UserError, match=r"b/scan\.nrrd .*9 x 7 x 6.*a/scan\.mha.*9 x 7 x 5"):
        LoadImage(reader=READER)(paths)


def test_a_damaged_file_is_named_and_not_tried_with_other_readers(tmp_path):
    path = Path(write(tmp_path, ".nii.gz", volume(), affine()))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RuntimeError) as caught:
        Compose([LoadImaged("image", reader=READER)])({"image": str(path)})
    mistake = root_user_error(caught.value)
    assert isinstance(mistake, UserError) and str(path) in str(mistake)


def test_a_folder_of_two_series_is_not_passed_to_readers_that_merge_them(tmp_path):
    """`LoadImage` takes an error in `read` for an unknown format and tries its other readers."""
    slices = dicom_slices(volume(), affine())
    for each in slices[3:]:
        each.series += ".2"
    folder = write_dicom(tmp_path / "scan", slices)
    with pytest.raises(UserError, match=r"scan.*UID"):
        LoadImage(reader=VolumeReader())(str(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_voxel_that_is_not_finite_in_float32_is_refused_by_file_name(tmp_path, value):
    array = volume().astype(np.float64)
    array[3, 2, 1] = value
    path = write(tmp_path, ".nii.gz", array, affine())
    with pytest.raises(UserError) as caught:
        LoadImaged("image", reader=READER)({"image": path})
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1], np.uint8),
        ([0, 255], np.uint8),
        ([0, 256], np.int16),
        ([-1, 3], np.int16),
        ([0, 40000], np.int32),
        ([0, 3_000_000_000], np.uint32),
        ([-1, 3_000_000_000], np.int64),
    ],
)
def test_label_dtype_is_the_smallest_type_that_holds_every_value(values, dtype) -> None:
    assert label_dtype(values) == dtype
