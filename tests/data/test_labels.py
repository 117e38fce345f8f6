# SPDX-License-Identifier: Apache-2.0
"""Label values are counted as whole numbers and mapped to classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.data import labels
from scripts.data.checks.labels import never_together
from scripts.data.labels import declared_values, looks_like_label, merged_values, tally, to_classes, value_text
from scripts.errors import UserError


@pytest.mark.parametrize("slab", [3, 2**20])
def test_values_near_a_whole_number_are_counted_with_it(monkeypatch, slab) -> None:
    monkeypatch.setattr(labels, "SLAB_VOXELS", slab)
    counted = tally(np.array([0.0, 1.0, 0.9999, 1.0009, 2.0, -0.0001, 1.0]))
    assert counted.whole == {0: 2, 1: 4, 2: 1}
    assert counted.rounded == 3
    assert not counted.other and counted.complete


@pytest.mark.parametrize("slab", [2, 2**20])
def test_values_that_are_not_whole_numbers_are_counted_separately(monkeypatch, slab) -> None:
    monkeypatch.setattr(labels, "SLAB_VOXELS", slab)
    counted = tally(np.array([0.998, np.nan, np.inf, np.nan, 1.0, -np.inf, 0.998]))
    assert counted.whole == {1: 1} and counted.rounded == 0
    finite = {value: number for value, number in counted.other.items() if np.isfinite(value)}
    assert finite == {0.998: 2}
    assert sorted(counted.other.values()) == [1, 1, 2, 2], "all NaN are one value"


def test_large_integers_are_exact() -> None:
    value = 2**53 + 1  # no float64
    assert tally(np.array([value, value, 0])).whole == {value: 2, 0: 1}


def test_counting_stops_at_too_many_values() -> None:
    assert tally(np.arange(256)).complete
    assert not tally(np.arange(257)).complete
    assert not tally(np.linspace(0, 1, 1000)).complete


def test_an_array_in_any_memory_order_is_counted_completely() -> None:
    array = np.arange(24).reshape(2, 3, 4) % 5
    expected = {value: int((array == value).sum()) for value in range(5)}
    for view in (array, array.T, array[::-1], np.asfortranarray(array)):
        assert tally(view).whole == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_every_type_and_memory_order_are_counted_in_slabs(monkeypatch, dtype, order) -> None:
    monkeypatch.setattr(labels, "SLAB_VOXELS", 7)
    voxels = np.asarray(np.arange(60).reshape(1, 3, 4, 5) % 3 * 100, dtype=dtype, order=order)
    assert tally(voxels).whole == {0: 20, 100: 20, 200: 20}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64])
def test_each_value_becomes_its_index_in_the_list(dtype):
    volume = torch.tensor([[0, 200, 100], [100, 0, 255]], dtype=dtype)
    classes, undeclared = to_classes(volume, [0, 200, 100], ignore_value=255)
    assert classes.tolist() == [[0, 1, 2], [2, 0, -1]]
    assert undeclared is None


def test_negative_values_are_mapped_too():
    classes, undeclared = to_classes(torch.tensor([-1, 4, 0, -7]), [0, -7, 4], ignore_value=-1)
    assert classes.tolist() == [-1, 2, 0, 1]
    assert undeclared is None


def test_values_within_rounding_of_a_whole_number_are_that_number():
    classes, undeclared = to_classes(torch.tensor([0.9999, -0.0001, 2.0005, 254.9999]), [0, 1, 2, 255])
    assert classes.tolist() == [1, 0, 2, 3]
    assert undeclared is None


@pytest.mark.parametrize("wrong", [0.5, 0.99, 3.0, -1.0, 1e9, float("inf"), float("-inf")])
def test_an_undeclared_value_is_returned(wrong):
    _, undeclared = to_classes(torch.tensor([0.0, 2.0, wrong, 1.0]), [0, 1, 2])
    assert undeclared == pytest.approx(wrong)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float64])
def test_values_that_float32_does_not_tell_apart_are_classes_of_their_own(dtype):
    values = [0, 312782546, 312782550, 312782554]
    classes, undeclared = to_classes(torch.tensor([312782550, 0, 312782554, 312782546], dtype=dtype), values)
    assert classes.tolist() == [2, 0, 3, 1]
    assert undeclared is None
    _, undeclared = to_classes(torch.tensor([0, 312782551], dtype=dtype), values)
    assert undeclared == 312782551


def test_a_value_that_float64_does_not_hold_exactly_is_refused_where_it_is_declared():
    assert declared_values(2, [0, 2**53]) == [0, 2**53]
    with pytest.raises(UserError, match=str(2**53 + 1)):
        declared_values(2, [0, 2**53 + 1])


def test_a_whole_number_in_a_message_has_all_its_digits():
    shown = [value_text(value) for value in (312782550.0, 7, 0.123456789, float("nan"), float("-inf"))]
    assert shown == ["312782550", "7", "0.1234568", "nan", "-inf"]


def test_nan_is_undeclared():
    _, undeclared = to_classes(torch.tensor([0.0, float("nan")]), [0, 1])
    assert undeclared != undeclared


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, torch.int8), (128, torch.int8), (129, torch.int16)])
def test_the_last_of_many_classes_fits_its_type(num_classes, dtype):
    classes, _ = to_classes(torch.tensor([num_classes - 1, 0]), range(num_classes))
    assert classes.dtype == dtype
    assert classes.tolist() == [num_classes - 1, 0]


def test_without_a_list_the_values_are_the_classes():
    assert declared_values(3) == [0, 1, 2]
    assert declared_values(3, None, 255) == [0, 1, 2]
    assert declared_values(2, [0, 255]) == [0, 255]


@pytest.mark.parametrize(
    ("values", "ignore_value", "named"),
    [
        ([0, 1], None, "label_values.*label_names"),
        ([0, 1, 1], None, "label_values"),
        ([0, 1, 0.5], None, r"label_values.* 0\.5"),
        ([0, 1, True], None, "label_values.* True"),
        ([0, 1, 4], 4, "ignore_value.* 4"),
        ([0, 1, [2, 4]], 4, "ignore_value.* 4"),
        ([0, [1, 2], [2, 3]], None, "label_values"),
        ([0, 1, []], None, "label_values"),
        (None, 2, "ignore_value.* 2"),
        (None, "255", "ignore_value.* '255'"),
    ],
)
def test_inconsistent_declarations_name_the_key_and_the_value(values, ignore_value, named):
    with pytest.raises(UserError, match=named):
        declared_values(3, values, ignore_value)


def test_values_of_one_class_become_its_index_and_the_first_is_written():
    classes, undeclared = to_classes(torch.tensor([0, 4, 2, 1, 9, 3]), [0, [1, 2, 4], [9]])
    assert classes.tolist()[:5] == [0, 1, 1, 1, 2] and undeclared == 3
    assert declared_values(3, [[0, 7], [4, 1], 9], 255) == [0, 4, 9]
    assert merged_values(3, [[0, 7], [4, 1], 9], 255) == [[0, 7], [4, 1], [9]]


def parcels(number: int) -> np.ndarray:
    """`number` values in cubes of 3 voxels side."""
    side = int(np.ceil(number ** (1 / 3)))
    return (np.arange(side**3).reshape(side, side, side) % number).repeat(3, 0).repeat(3, 1).repeat(3, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("number", [2, 4, 100])
def test_a_volume_of_few_whole_numbers_or_of_uniform_regions_looks_like_a_label(number, kind) -> None:
    assert looks_like_label(parcels(number).astype(kind))


def test_noise_fractions_and_many_values_do_not_look_like_labels() -> None:
    noise = np.random.default_rng(0).integers(0, 100, (12, 12, 12))
    noise[:8] = 0  # a margin of one value
    assert not looks_like_label(noise)
    assert not looks_like_label(parcels(4) / 2)
    assert not looks_like_label(parcels(300))


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        ([{1}, {1}, {255}, {255}, {255}, {255}], [(1, 255)]),
        ([{1}, {255}, set()], [(1, 255)]),
        ([{1, 2}, {1, 4}, {1, 2}, {1, 4}], [(2, 4)]),
        ([{1, 2}, {1}, {2}, {1, 2}], []),
        ([{1, 2}, {4}, *[{3}] * 20], []),  # rare structures
        ([], []),
    ],
)
def test_values_that_should_meet_and_never_do_are_named(files, pairs) -> None:
    sentences = [finding.sentence for finding in never_together(files, {1: "liver", 255: "mask"})]
    assert len(sentences) == len(pairs)
    for sentence, pair in zip(sentences, pairs, strict=True):
        assert all(f"{value} (" in sentence for value in pair)
    assert not sentences or "liver" in sentences[0] or "2 (" in sentences[0]
