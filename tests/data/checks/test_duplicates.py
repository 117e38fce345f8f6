# SPDX-License-Identifier: Apache-2.0
"""Which copies are told, and which are worse."""

from __future__ import annotations

from scripts.data.checks.cohort import Content, duplicates
from scripts.data.checks.finding import Kind


def told(*contents: tuple[str, str, bytes]) -> list[tuple[Kind, str]]:
    """Of (path, role, digest), each a case called after its path."""
    findings = duplicates(Content(path, path, role, digest) for path, role, digest in contents)
    return [(finding.kind, finding.case) for finding in findings]


def test_different_images_are_no_copies() -> None:
    assert told(("a", "labelled", b"1"), ("b", "test", b"2")) == []


def test_labelled_and_unlabelled_cases_are_one_split() -> None:
    assert told(("a", "labelled", b"1"), ("b", "unlabelled", b"1")) == [(Kind.DUPLICATE, "b")]


def test_any_other_two_splits_must_not_share_an_image() -> None:
    for first, second in (("labelled", "validation"), ("unlabelled", "test"), ("validation", "test")):
        assert told(("a", first, b"1"), ("b", second, b"1")) == [(Kind.LEAK, "b")]


def test_a_copy_within_test_is_a_leak_if_training_has_it_too() -> None:
    copies = [("a", "labelled", b"1"), ("b", "test", b"1"), ("c", "test", b"1")]
    assert told(*copies) == [(Kind.LEAK, "b"), (Kind.LEAK, "c")]
    assert told(*copies[1:]) == [(Kind.DUPLICATE, "c")]


def test_the_sentence_names_the_file_in_the_other_split() -> None:
    contents = [("a", "validation", b"1"), ("b", "test", b"1"), ("c", "test", b"1")]
    findings = list(duplicates(Content(path, path, role, digest) for path, role, digest in contents))
    assert all("a (validation)" in finding.sentence for finding in findings)


def test_a_copied_case_of_two_channels_is_told_once() -> None:
    channels = [
        Content(f"{case}_{channel}", case, "labelled", digest)
        for case in ("a", "b")
        for channel, digest in ((0, b"1"), (1, b"2"))
    ]
    assert [(f.kind, f.case) for f in duplicates(channels)] == [(Kind.DUPLICATE, "b")]


def test_one_file_in_two_lists_is_left_to_the_check_of_lists() -> None:
    assert told(("x/a", "labelled", b"1"), ("x/./a", "test", b"1")) == []
    assert told(("x/a", "labelled", b"1"), ("x/./a", "labelled", b"1")) == [(Kind.DUPLICATE, "x/./a")]
