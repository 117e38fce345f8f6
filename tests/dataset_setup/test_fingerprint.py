# SPDX-License-Identifier: Apache-2.0
"""Sizes, spacings, label values and intensities of volumes, against what was put into them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.dataset_setup import fingerprint
from scripts.dataset_setup.fingerprint import Fingerprint, Intensity, LabelValues, evenly, measure
from scripts.dataset_setup.layouts import FoundCase
from scripts.dataset_setup.roles import Roles
from scripts.errors import UserError


def quiet(items, _title):
    return items


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return str(path)


def measured(
    *cases: tuple[list[str], str], unlabelled: list[list[str]] | None = None, ignore_value: int | None = None
) -> Fingerprint:
    """Of labelled cases, each its images and its label, and of the images of unlabelled ones."""
    labelled = [FoundCase(f"l{n}", tuple(images), label) for n, (images, label) in enumerate(cases)]
    others = [FoundCase(f"u{n}", tuple(images)) for n, images in enumerate(unlabelled or [])]
    return measure(Roles(labelled=labelled, unlabelled=others), ignore_value, quiet)


def grids_of(*cases: list[str]) -> list[fingerprint.Grid]:
    return measured(unlabelled=list(cases)).grids


def intensities_of(*cases: tuple[list[str], str], ignore_value: int | None = None) -> list[Intensity]:
    return measured(*cases, ignore_value=ignore_value).intensities


def test_a_grid_is_told_in_the_order_of_the_patients_axes(tmp_path: Path) -> None:
    """Stored axes point to the head (4 mm), to the left (2 mm) and to the back (3 mm)."""
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    [grid] = grids_of([write(tmp_path / "a.nii", np.zeros((7, 5, 6), np.int16), affine)])
    assert grid.shape == (5, 6, 7)
    assert grid.spacing == pytest.approx((2, 3, 4))


def test_channels_in_one_file_and_in_several_are_counted(tmp_path: Path) -> None:
    both = write(tmp_path / "both.nii", np.zeros((3, 4, 5, 2), np.int16))
    one = write(tmp_path / "one.nii", np.zeros((3, 4, 5), np.int16))
    assert [grid.channels for grid in grids_of([both], [one, one])] == [2, 2]
    with pytest.raises(UserError, match=r"both\.nii.*one\.nii"):
        grids_of([one], [both])


def test_volumes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    small, large = (write(tmp_path / f"{n}.nii", np.zeros((n, 4, 5), np.int16)) for n in (3, 6))
    with pytest.raises(UserError, match=r"6\.nii.*3\.nii"):
        grids_of([small, large])
    moved = write(tmp_path / "moved.nii", np.zeros((3, 4, 5), np.int16), np.diag([1.0, 2.0, 3.02, 1.0]))
    with pytest.raises(UserError, match=r"moved\.nii.*0\.08 mm"):
        grids_of([small, moved])


def test_labels_that_cannot_lie_on_their_images_are_named_and_counted(tmp_path: Path) -> None:
    small, large = (write(tmp_path / f"{n}.nii", np.zeros((n, 4, 5), np.int16)) for n in (3, 6))
    with pytest.raises(UserError, match=r"6\.nii.*3\.nii"):
        measured(([small], large))
    onehot = write(tmp_path / "onehot.nii", np.zeros((3, 4, 5, 2), np.uint8))
    with pytest.raises(UserError, match=r"onehot\.nii.*\(2 labels"):
        measured(([small], onehot), ([small], small), ([small], onehot))


def test_a_label_whose_header_points_elsewhere_is_named_and_a_rounded_one_passes(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    zeros = np.zeros((4, 5, 6), np.uint8)
    image, rounded = write(tmp_path / "a.nii", zeros, affine), write(tmp_path / "b.nii", zeros, affine + 1e-3)
    turned = write(tmp_path / "c.nii", zeros, np.abs(affine))
    measured(([image], rounded))
    with pytest.raises(UserError, match=r"c\.nii.*8\.544 mm"):  # 3 and 8 mm
        measured(([image], turned))


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_label_values_must_be_whole_numbers(wrong: float, tmp_path: Path) -> None:
    voxels = np.zeros((2, 3, 4), np.float32)
    voxels[1, 2, 3] = wrong
    label = write(tmp_path / "a.nii", voxels)
    with pytest.raises(UserError, match=rf"a\.nii.*{wrong}"):
        measured(([label], label))


def test_an_image_among_the_labels_is_noticed(tmp_path: Path) -> None:
    image = write(tmp_path / "a.nii", np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    with pytest.raises(UserError, match=r"a\.nii"):
        measured(([image], image))


def test_the_header_of_each_file_is_parsed_once(tmp_path: Path, monkeypatch) -> None:
    opened: list[str] = []
    open_volume = fingerprint.open_volume
    monkeypatch.setattr(fingerprint, "open_volume", lambda path: opened.append(path) or open_volume(path))
    files = [write(tmp_path / f"{name}.nii", np.zeros((2, 3, 4), np.uint8)) for name in "abcd"]
    measured((files[:2], files[2]), unlabelled=[[files[3], files[3]]])
    assert sorted(opened) == sorted([*files, files[3]])


def test_cases_that_hold_a_value_are_counted_apart_from_its_voxels(tmp_path: Path) -> None:
    image = write(tmp_path / "image.nii", np.zeros((2, 3, 4), np.int16))
    first, second = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    first[0, 0, :3], second[1, 1, 1] = 1, 4
    pairs = [([image], write(tmp_path / f"{n}.nii", array)) for n, array in enumerate((first, first, second))]
    assert measured(*pairs).labels == LabelValues(
        {0: 3, 1: 2, 4: 1}, {0: 2 * 21 + 23, 1: 6, 4: 1}, [{0, 1}, {0, 1}, {0, 4}]
    )


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
    first, second = intensities_of(*cases, ignore_value=255)
    expected = np.percentile(np.concatenate([np.arange(24), np.arange(24) + 1000]), [0.5, 99.5])
    assert (first.low, first.high) == pytest.approx(tuple(expected))
    assert first.minimum == -500  # between -1000 and 0
    assert (second.minimum, second.low, second.high) == (7, 7, 7)


def test_labels_within_rounding_of_a_whole_number_are_used_as_it(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.float32)
    label[1:3, 1:4, 1:5], label[0, 0, 0], label[3] = 0.9999, 254.9999, 0.0004
    image = np.where(label > 0.5, 10, -500).astype(np.int16)
    image[0, 0, 0] = 30_000
    result = measured(([write(tmp_path / "a.nii", image)], write(tmp_path / "l.nii", label)), ignore_value=255)
    assert result.labels.voxels == {0: 120 - 24 - 1, 1: 24, 255: 1}
    [channel] = result.intensities
    assert (channel.low, channel.high) == (10, 10)


def test_a_label_stored_in_another_order_lies_on_the_same_tissue(tmp_path: Path) -> None:
    """The label is stored from head to foot first: the image's third axis, turned round, and then its first two."""
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    label = (array == 17).astype(np.uint8)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turned = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [-3.0, 0, 0, 15.0], [0, 0, 0, 1]])
    image = write(tmp_path / "a.nii", array, affine)
    other = write(tmp_path / "l.nii", label.transpose(2, 0, 1)[::-1], turned)
    [channel] = intensities_of(([image], other))
    assert (channel.low, channel.high) == (17, 17)


def test_a_large_foreground_gives_a_bounded_even_sample(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "VOXELS_PER_CASE", 100)
    ramp = np.arange(10_000, dtype=np.int16).reshape(10, 20, 50)
    image, label = write(tmp_path / "a.nii", ramp), write(tmp_path / "l.nii", np.ones_like(ramp, np.uint8))
    [channel] = intensities_of(([image], label))
    assert channel.low == pytest.approx(50, abs=100)
    assert channel.high == pytest.approx(9950, abs=100)


def test_cases_without_foreground_give_their_whole_volume(tmp_path: Path) -> None:
    image = write(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    label = write(tmp_path / "l.nii", np.zeros((2, 3, 4), np.uint8))
    [channel] = intensities_of(([image], label))
    assert channel.high == pytest.approx(np.percentile(np.arange(24), 99.5))


def test_a_sample_is_spread_over_the_whole_list() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly("ab", 3) == ["a", "b"]
