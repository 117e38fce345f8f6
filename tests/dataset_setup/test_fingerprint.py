# SPDX-License-Identifier: Apache-2.0
"""Sizes, spacings, label values and intensities of volumes, against what was put into them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.data import labels as label_tally
from scripts.dataset_setup import fingerprint
from scripts.dataset_setup.fingerprint import (
    LabelValues,
    count_values,
    evenly,
    grid_of,
    label_mistake,
    measure_grids,
    measure_intensities,
    measure_labels,
)
from scripts.errors import UserError


def quiet(items, _title):
    return items


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return str(path)


def test_a_grid_is_told_in_the_order_of_the_patients_axes(tmp_path: Path) -> None:
    """Stored axes point to the head (4 mm), to the left (2 mm) and to the back (3 mm)."""
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    grid = grid_of([write(tmp_path / "a.nii", np.zeros((7, 5, 6), np.int16), affine)])
    assert grid.shape == (5, 6, 7)
    assert grid.spacing == pytest.approx((2, 3, 4))


def test_channels_in_one_file_and_in_several_are_counted(tmp_path: Path) -> None:
    both = write(tmp_path / "both.nii", np.zeros((3, 4, 5, 2), np.int16))
    one = write(tmp_path / "one.nii", np.zeros((3, 4, 5), np.int16))
    assert grid_of([both]).channels == grid_of([one, one]).channels == 2
    with pytest.raises(UserError, match=r"both\.nii has 2 channels, but .*one\.nii has 1"):
        measure_grids([[one], [both]], quiet)


def test_volumes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    slice_ = write(tmp_path / "slice.nii", np.zeros((8, 9, 1), np.int16))
    with pytest.raises(UserError, match=r"slice\.nii has 8 x 9 x 1 voxels"):
        grid_of([slice_])
    small, large = (write(tmp_path / f"{n}.nii", np.zeros((n, 4, 5), np.int16)) for n in (3, 6))
    with pytest.raises(
        UserError, match=r"6\.nii has 6 x 4 x 5 voxels, but .*3\.nii, a channel of the same image, has 3 x"
    ):
        grid_of([small, large])
    moved = write(tmp_path / "moved.nii", np.zeros((3, 4, 5), np.int16), np.diag([1.0, 2.0, 3.02, 1.0]))
    with pytest.raises(UserError, match=r"moved\.nii lies 0\.08 mm away from"):
        grid_of([small, moved])


def test_labels_that_cannot_lie_on_their_images_are_named_and_counted(tmp_path: Path) -> None:
    small, large = (write(tmp_path / f"{n}.nii", np.zeros((n, 4, 5), np.int16)) for n in (3, 6))
    with pytest.raises(UserError, match=r"The label .*6\.nii has 6 x 4 x 5 voxels, but its image .*3\.nii has 3 x 4"):
        measure_labels([(small, large)], quiet)
    onehot = write(tmp_path / "onehot.nii", np.zeros((3, 4, 5, 2), np.uint8))
    with pytest.raises(UserError, match=r"2 channels: write one .* \(2 labels are like this\)\.$"):
        measure_labels([(small, onehot), (small, small), (small, onehot)], quiet)


def test_a_label_whose_header_points_elsewhere_is_named_and_a_rounded_one_passes(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    zeros = np.zeros((4, 5, 6), np.uint8)
    image, rounded = write(tmp_path / "a.nii", zeros, affine), write(tmp_path / "b.nii", zeros, affine + 1e-3)
    turned = write(tmp_path / "c.nii", zeros, np.abs(affine))
    assert label_mistake(image, rounded) is None
    assert "c.nii lies up to 8.544 mm beside" in label_mistake(image, turned)  # 3 and 8 mm


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_are_counted_in_slabs_as_in_one(monkeypatch, dtype, order) -> None:
    monkeypatch.setattr(label_tally, "SLAB_VOXELS", 7)
    voxels = np.asarray(np.arange(60).reshape(1, 3, 4, 5) % 3 * 100, dtype=dtype, order=order)
    assert count_values(voxels, "a") == {0: 20, 100: 20, 200: 20}


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_label_values_must_be_whole_numbers(wrong: float) -> None:
    voxels = np.zeros((1, 2, 3, 4))
    voxels[0, 1, 2, 3] = wrong
    with pytest.raises(UserError, match=r"a\.nii holds the value .*whole numbers"):
        count_values(voxels, "a.nii")


def test_an_image_among_the_labels_is_noticed() -> None:
    with pytest.raises(UserError, match="looks like an image"):
        count_values(np.arange(1000).reshape(1, 10, 10, 10), "a.nii")


def test_cases_that_hold_a_value_are_counted_apart_from_its_voxels(tmp_path: Path) -> None:
    image = write(tmp_path / "image.nii", np.zeros((2, 3, 4), np.int16))
    first, second = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    first[0, 0, :3], second[1, 1, 1] = 1, 4
    pairs = [(image, write(tmp_path / f"{n}.nii", array)) for n, array in enumerate((first, first, second))]
    values = measure_labels(pairs, quiet)
    assert values == LabelValues({0: 3, 1: 2, 4: 1}, {0: 2 * 21 + 23, 1: 6, 4: 1})


def test_intensities_come_from_the_foreground_of_each_channel(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:4, 1:5] = 2
    label[0, 0, 0] = 255  # ignored
    cases = []
    for n in (0, 1000):
        channels = [np.full(label.shape, -1000 + n, np.int16), np.full(label.shape, 7, np.int16)]
        channels[0][label == 2] = np.arange(24) + n
        channels[0][0, 0, 0] = 30_000
        files = [write(tmp_path / f"{n}_{c}.nii", channel) for c, channel in enumerate(channels)]
        cases.append((files, write(tmp_path / f"{n}_label.nii", label)))
    first, second = measure_intensities(cases, 255, quiet)
    expected = np.percentile(np.concatenate([np.arange(24), np.arange(24) + 1000]), [0.5, 99.5])
    assert (first.low, first.high) == pytest.approx(tuple(expected))
    assert first.minimum == -500  # between -1000 and 0
    assert (second.minimum, second.low, second.high) == (7, 7, 7)


def test_labels_within_rounding_of_a_whole_number_are_used_as_it(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.float32)
    label[1:3, 1:4, 1:5], label[0, 0, 0], label[3] = 0.9999, 254.9999, 0.0004
    image = np.where(label > 0.5, 10, -500).astype(np.int16)
    image[0, 0, 0] = 30_000
    files = write(tmp_path / "a.nii", image), write(tmp_path / "l.nii", label)
    assert measure_labels([files], quiet).voxels == {0: 120 - 24 - 1, 1: 24, 255: 1}
    [channel] = measure_intensities([([files[0]], files[1])], 255, quiet)
    assert (channel.low, channel.high) == (10, 10)


def test_a_label_stored_in_another_order_lies_on_the_same_tissue(tmp_path: Path) -> None:
    """The label is stored from head to foot first: the image's third axis, turned round, and then its first two."""
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    label = (array == 17).astype(np.uint8)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turned = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [-3.0, 0, 0, 15.0], [0, 0, 0, 1]])
    image = write(tmp_path / "a.nii", array, affine)
    other = write(tmp_path / "l.nii", label.transpose(2, 0, 1)[::-1], turned)
    assert label_mistake(image, other) is None
    [channel] = measure_intensities([([image], other)], None, quiet)
    assert (channel.low, channel.high) == (17, 17)


def test_a_large_foreground_gives_a_bounded_even_sample(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "VOXELS_A_CASE", 100)
    ramp = np.arange(10_000, dtype=np.int16).reshape(10, 20, 50)
    image, label = write(tmp_path / "a.nii", ramp), write(tmp_path / "l.nii", np.ones_like(ramp, np.uint8))
    [channel] = measure_intensities([([image], label)], None, quiet)
    assert channel.low == pytest.approx(50, abs=100)
    assert channel.high == pytest.approx(9950, abs=100)


def test_cases_without_foreground_give_their_whole_volume(tmp_path: Path) -> None:
    image = write(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    label = write(tmp_path / "l.nii", np.zeros((2, 3, 4), np.uint8))
    [channel] = measure_intensities([([image], label)], None, quiet)
    assert channel.high == pytest.approx(np.percentile(np.arange(24), 99.5))


def test_a_sample_is_spread_over_the_whole_list() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly("ab", 3) == ["a", "b"]
