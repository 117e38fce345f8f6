# SPDX-License-Identifier: Apache-2.0
"""A label is on its image's grid, whatever its axes; one that is elsewhere is refused, in the check and in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts.data.checks.finding import Kind
from scripts.data.checks.grid import cut_label, label_on_image
from scripts.data.transforms import LabelOnImaged
from scripts.errors import UserError, root_user_error
from scripts.images.read import read_header
from tests.volume_files import affine, oblique, save, stored_as

ROOT = Path(__file__).resolve().parents[3]


def turned_by_45_degrees(spacing: tuple[float, float, float]) -> np.ndarray:
    """Between two axes of the body: rounding decides which one an axis of the file is nearest to."""
    result = affine(spacing)
    result[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2) @ result[:2, :2]
    return result


def case(folder: Path, shape, image_affine, label_affine, axcodes=None) -> dict[str, str]:
    """Files of an image and of a label with a box in it."""
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(n // 4, n // 2) for n in shape)] = 1
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 5 * label
    stored = (label, label_affine) if axcodes is None else stored_as(label, label_affine, axcodes)
    return {
        "image": str(save(folder / "image.nii.gz", image, image_affine)),
        "label": str(save(folder / "label.nii.gz", *stored)),
    }


def training_sample(files: dict[str, str], spacing) -> dict:
    """What the deterministic transforms of configs/train.yaml make of a case."""
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs/train.yaml")))
    parser["spacing"], parser["label_names"] = list(spacing), ["background", "a"]
    parser.parse()
    return Compose(parser.get_parsed_content("train::deterministic_transforms"))(files)


# Each label's last voxel is on the other side of a rounding limit of (n - 1) * spacing / target + 1 than its image's.
@pytest.mark.parametrize(
    ("shape", "make", "spacing", "of_label", "axcodes", "target"),
    [
        ((40, 18, 12), affine, (1.5, 1.5, 2.0), (1.503, 1.5, 2.0), None, (3.0, 1.5, 2.0)),
        ((16, 40, 12), affine, (1.5, 0.8, 2.0), (1.5, 0.7985, 2.0), "PIR", (1.5, 39 * 0.79925 / 24.5, 2.0)),
        ((20, 18, 13), oblique, (1.5, 2.0, 2.5), (1.5, 2.0, 2.506), "LAS", (1.5, 2.0, 12 * 2.503 / 10.5)),
        ((300, 9, 8), affine, (0.7, 2.0, 2.0), (0.7002, 2.0, 2.0), None, (299 * 0.7001 / 149.5, 2.0, 2.0)),
        ((24, 18, 12), turned_by_45_degrees, (1.5, 1.5, 2.0), (1.5, 1.502, 2.0), "PIR", (1.0, 1.0, 2.0)),
    ],
)
def test_a_label_with_a_slightly_other_spacing_has_the_size_of_its_image_after_resampling(
    tmp_path, shape, make, spacing, of_label, axcodes, target
) -> None:
    files = case(tmp_path, shape, make(spacing), make(of_label), axcodes)
    assert label_on_image(read_header(files["image"]), read_header(files["label"])) == []
    sample = training_sample(files, target)
    assert sample["label"].shape == sample["image"].shape
    inside = sample["image"].as_tensor()[sample["label"].as_tensor() == 1]
    assert inside.mean() > sample["image"].as_tensor().mean() + 1  # the box is still on its bright part


@pytest.mark.parametrize(
    ("make", "spacing", "shift"),
    [
        (affine, (1.53, 1.5, 2.0), 0.0),
        (affine, (1.5, 1.5, 2.2), 0.0),
        (oblique, (1.5, 1.51, 2.0), 0.0),
        (affine, (1.5, 1.5, 2.0), 0.75),
        (oblique, (1.5, 1.5, 2.0), 0.2),
    ],
)
def test_a_label_elsewhere_is_refused_by_the_check_and_by_the_transform(tmp_path, make, spacing, shift) -> None:
    moved = make(spacing)
    moved[0, 3] += shift
    files = case(tmp_path, (24, 30, 12), make((1.5, 1.5, 2.0)), moved)
    findings = label_on_image(read_header(files["image"]), read_header(files["label"]))
    assert [finding.kind for finding in findings] == [Kind.GRID]
    with pytest.raises(RuntimeError) as caught:
        training_sample(files, (1.5, 1.5, 2.0))
    told = root_user_error(caught.value)
    assert isinstance(told, UserError) and files["label"] in str(told)


def cut_out(files: dict[str, str], label: np.ndarray, start, axcodes=None, suffix=".nii.gz") -> None:
    """Save a label that begins at a voxel of the image, which may be a fraction, as a program that cuts it does."""
    matrix = affine((1.5, 1.5, 2.0))
    moved = matrix.copy()
    moved[:3, 3] = matrix[:3, :3] @ start + matrix[:3, 3]
    stored = (label, moved) if axcodes is None else stored_as(label, moved, axcodes)
    files["label"] = str(save(Path(files["label"].replace(".nii.gz", suffix)), *stored))


def on_image(files: dict[str, str]) -> np.ndarray:
    steps = [
        LoadImaged(["image", "label"], reader="scripts.images.monai.VolumeReader"),
        EnsureChannelFirstd(["image", "label"]),
        LabelOnImaged("label"),
    ]
    return Compose(steps)(files)["label"][0].numpy()


@pytest.mark.parametrize(
    ("axcodes", "start", "suffix"),
    [
        (None, (3, 4, 2), ".nii.gz"),
        ("LPS", (0, 1, 0), ".nrrd"),
        ("PIR", (18, 23, 8), ".mha"),
        (None, (0, 0, 0), ".seg.nrrd"),
        (None, (3.05, 4, 2), ".nii.gz"),
    ],
)
def test_a_label_cut_to_its_painted_part_is_placed_by_its_offset(tmp_path, axcodes, start, suffix) -> None:
    """3D Slicer can save a segmentation of less than the image."""
    files = case(tmp_path, (24, 30, 12), affine((1.5, 1.5, 2.0)), affine((1.5, 1.5, 2.0)))
    part = np.random.default_rng(1).integers(0, 2, (6, 7, 4)).astype(np.uint8)
    cut_out(files, part, start, axcodes, suffix)
    image, label = read_header(files["image"]), read_header(files["label"])
    assert label_on_image(image, label) == []
    assert [finding.kind for finding in cut_label(image, label)] == [Kind.CUT_LABEL]
    expected = np.zeros((24, 30, 12))
    x, y, z = (round(at) for at in start)
    expected[x : x + 6, y : y + 7, z : z + 4] = part
    np.testing.assert_array_equal(on_image(files), expected)


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        ((3.5, 4, 2), ".nii.gz"),  # between two voxels
        ((3, 4, 1.8), ".seg.nrrd"),
        ((19, 4, 2), ".nii.gz"),  # ends outside of the image
        ((3, -1, 2), ".seg.nrrd"),
        ((0, 0, 0), ".nii.gz"),  # a header without position, perhaps of another patient
    ],
)
def test_a_cut_label_that_is_not_on_voxels_of_its_image_is_refused(tmp_path, start, suffix) -> None:
    files = case(tmp_path, (24, 30, 12), affine((1.5, 1.5, 2.0)), affine((1.5, 1.5, 2.0)))
    cut_out(files, np.ones((6, 7, 4), np.uint8), start, suffix=suffix)
    (finding,) = label_on_image(read_header(files["image"]), read_header(files["label"]))
    assert finding.kind is Kind.SHAPE and files["label"] in finding.sentence
    with pytest.raises(RuntimeError) as caught:
        on_image(files)
    assert isinstance(root_user_error(caught.value), UserError)


def test_a_smaller_label_of_another_resolution_is_no_cut_label(tmp_path) -> None:
    files = case(tmp_path, (24, 30, 12), affine((1.5, 1.5, 2.0)), affine((1.5, 1.5, 2.0)))
    save(Path(files["label"]), np.ones((6, 7, 4), np.uint8), affine((3.0, 3.0, 4.0)))
    image, label = read_header(files["image"]), read_header(files["label"])
    assert cut_label(image, label) == []
    (finding,) = label_on_image(image, label)
    assert finding.kind is Kind.SHAPE
