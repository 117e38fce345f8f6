# SPDX-License-Identifier: Apache-2.0
"""Which labelled cases are kept for testing: by the hash of their names, so that the choice is everybody's."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from scripts.errors import BundleError


def number_of_tests(labelled: int, fraction: float) -> int:
    """A fraction of the labelled cases, rounded down: with few labels none is given away.

    Raises:
        BundleError: for a fraction that is not from 0 to below 1.
    """
    if not 0 <= fraction < 1:
        raise BundleError(f"test_fraction must be at least 0 and below 1, got {fraction}.")
    return math.floor(labelled * Fraction(str(fraction)))  # 0.1 of 30 is 3, whatever binary numbers say


def choose_tests(names: Sequence[str], number: int, patient: str | None = None) -> set[str]:
    """Names of the test cases.

    The cases whose names have the lowest SHA-256 hash are taken. This looks random, depends on no seed and no order of
    files, and a case that is added later seldom changes the role of another.

    Args:
        names: of labelled cases, each once.
        number: how many to take.
        patient: regular expression; cases whose names share what it finds stay together, and whole patients are taken
            until there are at least `number` cases.

    Raises:
        BundleError: if no case would be left to train on.
    """
    if number < 0:
        raise BundleError(f"test_cases must be at least 0, got {number}.")
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(patient_of(name, patient), []).append(name)
    tests: set[str] = set()
    for group in sorted(groups, key=lambda key: hashlib.sha256(key.encode("utf-8")).hexdigest()):
        if len(tests) >= number:
            break
        tests.update(groups[group])
    if len(tests) >= len(names):
        raise BundleError(
            f"Testing takes {len(tests)} of {len(names)} labelled cases, and none is left to train on: lower "
            "--test_cases or --test_fraction."
        )
    return tests


def patient_of(name: str, pattern: str | None) -> str:
    """What the pattern finds in a case's name; the name itself without a pattern or where it finds nothing.

    Raises:
        BundleError: for a pattern that is no regular expression.
    """
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise BundleError(f"patient_pattern {pattern!r} is no regular expression: {error}.") from error
    return found[0] if found else name
