# SPDX-License-Identifier: Apache-2.0
"""Checks of all cases: gaps in the datalist, outliers, and images that occur twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.data.checks.cohort import (
    Content,
    Member,
    duplicates,
    far_from_median,
    labels_alone,
    patients_on_both_sides,
    unlike_the_rest,
)
from scripts.data.checks.finding import Kind
from scripts.images.header import VolumeHeader

# ------------------------------------------------------------------ outliers


def member(name, spacing=(1.0, 1.0, 2.0), shape=(10, 12, 14), axes=(1, 1, 1), oriented=True, role="labelled") -> Member:
    grid = np.diag([*np.multiply(spacing, axes), 1.0])
    return Member(name, role, VolumeHeader(f"{name}.nii", shape, 1, grid, "int16", oriented))


def outliers(members) -> list[tuple[Kind, str]]:
    return [(finding.kind, finding.case) for finding in unlike_the_rest(members)]


@pytest.mark.parametrize(("value", "far"), [(2.01, True), (1.99, False), (1 / 2.01, True), (1 / 1.99, False)])
def test_equal_values_have_limits_of_twice_and_half(value, far) -> None:
    values = np.array([[3.0, 1.0]] * 6 + [[3.0, value]])
    assert far_from_median(values).tolist() == [False] * 6 + [far]


def test_widely_spread_values_have_no_outlier_at_three_times_the_median() -> None:
    """Logarithms spread evenly from -1 to 1 deviate by 0.5 in the median: the limit is near exp(5 * 1.48 / 2) = 41."""
    spread = np.exp(np.linspace(-1, 1, 21))
    assert not far_from_median(np.append(spread, 3.0)[:, None]).any()
    assert far_from_median(np.append(spread, 100.0)[:, None]).tolist() == [False] * 21 + [True]


def test_four_cases_are_too_few_for_an_outlier() -> None:
    odd = member("odd", spacing=(1.0, 1.0, 9.0))
    assert outliers([member(str(n)) for n in range(3)] + [odd]) == []
    assert outliers([member(str(n)) for n in range(4)] + [odd]) == [(Kind.SPACING, "odd")]


def test_spacings_are_compared_along_the_bodys_axes() -> None:
    """One volume is stored with the head-to-foot axis first; the spacing along it is 2 mm, as in the others."""
    turned = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    other = Member("p", "test", VolumeHeader("p.nii", (14, 10, 12), 1, turned, "int16", True))
    assert outliers([*(member(str(n)) for n in range(6)), other]) == [(Kind.ORIENTATION, "p")]


def test_without_a_majority_no_orientation_is_reported() -> None:
    halves = [member(str(n), axes=(1, 1, 1) if n % 2 else (-1, -1, 1)) for n in range(6)]
    assert outliers(halves) == []
    assert outliers([*halves, member("7")]) == [
        (Kind.ORIENTATION, "0"),
        (Kind.ORIENTATION, "2"),
        (Kind.ORIENTATION, "4"),
    ]


def test_files_without_orientation_do_not_vote() -> None:
    silent = [member(f"s{n}", axes=(-1, -1, 1), oriented=False) for n in range(9)]
    assert outliers([*silent, *(member(str(n)) for n in range(3))]) == []


# ------------------------------------------------------------------ patients


@pytest.mark.parametrize(
    ("name", "expected"), [("knee{}_{}", ["knee0_5"]), ("patient{}_{}", [f"patient{p}_5" for p in range(3)])]
)
def test_patients_on_both_sides_are_all_reported_and_possible_ones_once(name, expected) -> None:
    members = [member(name.format(p, v), role="test" if v == 5 else "labelled") for p in range(3) for v in range(6)]
    findings = patients_on_both_sides(members)
    assert [(finding.kind, finding.case) for finding in findings] == [(Kind.SAME_PATIENT, case) for case in expected]
    assert all(("--patient_pattern" in finding.sentence) == ("knee" in name) for finding in findings)


# ------------------------------------------------------------------ duplicates


def copies(*contents: tuple[str, str, bytes]) -> list[tuple[Kind, str]]:
    """Kind and case of the findings for images given as (path, role, digest); each case is named after its path."""
    findings = duplicates(Content(path, path, role, digest) for path, role, digest in contents)
    return [(finding.kind, finding.case) for finding in findings]


def test_different_images_are_not_duplicates() -> None:
    assert copies(("a", "labelled", b"1"), ("b", "test", b"2")) == []


def test_labelled_and_unlabelled_cases_are_one_split() -> None:
    assert copies(("a", "labelled", b"1"), ("b", "unlabelled", b"1")) == [(Kind.DUPLICATE, "b")]


def test_any_other_two_splits_must_not_share_an_image() -> None:
    for first, second in (("labelled", "validation"), ("unlabelled", "test"), ("validation", "test")):
        assert copies(("a", first, b"1"), ("b", second, b"1")) == [(Kind.LEAK, "b")]


def test_a_copy_within_test_is_a_leak_if_training_has_it_too() -> None:
    cases = [("a", "labelled", b"1"), ("b", "test", b"1"), ("c", "test", b"1")]
    assert copies(*cases) == [(Kind.LEAK, "b"), (Kind.LEAK, "c")]
    assert copies(*cases[1:]) == [(Kind.DUPLICATE, "c")]


def test_a_leak_names_the_other_split() -> None:
    contents = [("a", "validation", b"1"), ("b", "test", b"1"), ("c", "test", b"1")]
    findings = list(duplicates(Content(path, path, role, digest) for path, role, digest in contents))
    assert all("validation" in finding.sentence for finding in findings)


def test_a_copied_case_of_two_channels_is_reported_once() -> None:
    channels = [
        Content(f"{case}_{channel}", case, "labelled", digest)
        for case in ("a", "b")
        for channel, digest in ((0, b"1"), (1, b"2"))
    ]
    assert [(f.kind, f.case) for f in duplicates(channels)] == [(Kind.DUPLICATE, "b")]


def test_one_file_in_two_lists_is_left_to_the_check_of_lists() -> None:
    assert copies(("x/a", "labelled", b"1"), ("x/./a", "test", b"1")) == []
    assert copies(("x/a", "labelled", b"1"), ("x/./a", "labelled", b"1")) == [(Kind.DUPLICATE, "x/./a")]


@pytest.fixture
def touch(tmp_path):
    def make(*paths: str) -> list[str]:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return [str(tmp_path / path) for path in paths]

    return make


def alone(images, labels) -> list[str]:
    return [Path(finding.file).name for finding in labels_alone(images, labels)]


def test_in_a_folder_of_labels_every_other_image_file_is_reported(touch) -> None:
    images, labels = touch("images/a.nii"), touch("labels/a.nii")
    touch("labels/b.nii", "labels/notes.txt", "labels/.c.nii", "images/d.nii")
    assert alone(images, labels) == ["b.nii"]


def test_next_to_images_only_names_of_labels_are_reported(touch) -> None:
    images, labels = touch("a.nii"), touch("a_seg.nii")
    touch("b_seg.nii", "c.nii")
    assert alone(images, labels) == ["b_seg.nii"]


def test_a_path_written_another_way_is_the_same_file(touch, tmp_path) -> None:
    images = touch("images/a.nii")
    touch("labels/a.nii")
    assert alone(images, [f"{tmp_path}/images/../labels/./a.nii"]) == []


def test_missing_folders_have_no_findings(tmp_path) -> None:
    assert alone([f"{tmp_path}/i/a.nii"], [f"{tmp_path}/l/a.nii"]) == []
