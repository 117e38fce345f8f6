# SPDX-License-Identifier: Apache-2.0
"""Guess which cases are of one patient, from what their folders and names share."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from scripts.data.naming import PART_FOLDERS, SEPARATOR, is_image_folder, is_label_folder

MOST_CASES = 4  # of a patient, unless there are more patients than that
FEWEST_PATIENTS = 3  # fewer groups are rather sites or years


def guess_patients(cases: Sequence[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """Group cases into patients.

    Cases are of one patient if they share, in this order: a BIDS subject (`sub-01`); a folder; the beginning of a name
    up to a separator, if it has a digit (`patient001_frame01`); the leading digits of a number whose last one or two
    digits count from 0 or 1 for each patient (`study_0300`, `study_0301`). What does not give several patients with few
    cases each, but sites or plain numbers, is not used.

    Args:
        cases: name and image file of each case; names are unique.

    Returns:
        The patient of each case by name, empty if every case is taken for a patient; and a sentence that says so.

    Example:
        >>> guess_patients([(f"p{n}_{v}", f"p{n}_{v}.nii") for n in range(3) for v in "ab"])[0]["p2_b"]
        'p2'
        >>> guess_patients([(f"case_{n}", f"case_{n}.nii") for n in range(6)])
        ({}, '')
    """
    names = [name for name, _ in cases]
    for what, keys in _candidates(cases):
        sizes = Counter(keys)
        if len(sizes) >= FEWEST_PATIENTS and 1 < max(sizes.values()) <= max(MOST_CASES, len(sizes)):
            first = next(key for key in keys if sizes[key] > 1)
            together = [name for name, key in zip(names, keys, strict=True) if key == first]
            sentence = (
                f"The {len(names)} cases are taken for {len(sizes)} patients because they share {what} "
                f"({', '.join(together)}). All cases of a patient stay on one side of a split; a patient_pattern of "
                "your own changes that ('.*': every case is a patient)."
            )
            return dict(zip(names, keys, strict=True)), sentence
    return {}, ""


def _candidates(cases: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield what cases may share, and the key of each case; a case without that is alone."""
    names = [name for name, _ in cases]
    subjects = [re.search(r"(?<![a-z0-9])sub-[a-z0-9]+", path, re.IGNORECASE) for _, path in cases]
    if all(subjects):
        yield "a BIDS subject", [found[0] for found in subjects if found]
    places = _places([path for _, path in cases])
    for depth in range(1, max(map(len, places), default=0) + 1):
        pairs = zip(names, places, strict=True)
        yield "a folder", ["/".join(place[:depth]) if len(place) >= depth else name for name, place in pairs]
    words = [re.split(rf"(?<={SEPARATOR})", name) for name in names]
    for count in range(1, max(map(len, words), default=0)):
        starts = ["".join(each[:count]) if len(each) > count else "" for each in words]
        keys = [re.sub(rf"{SEPARATOR}+$", "", start) if re.search(r"\d", start) else "" for start in starts]
        yield "the beginning of their names", [key or name for key, name in zip(keys, names, strict=True)]
    for digits in (2, 1):
        if _count_visits(names, digits):
            yield "the beginning of their numbers", [name[:-digits] for name in names]


def _places(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """The folders of each file below those that all share, without folders of images, labels or parts."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath(folders) if folders else ""
    return [tuple(filter(_may_be_a_patient, os.path.relpath(folder, root).split(os.sep))) for folder in folders]


def _may_be_a_patient(folder: str) -> bool:
    return folder.lower() not in {".", *PART_FOLDERS} and not is_image_folder(folder) and not is_label_folder(folder)


def _count_visits(names: Sequence[str], digits: int) -> bool:
    """Whether the last digits of all names count from 0 or 1 for each beginning, and never reach their end."""
    if not all(re.fullmatch(r".*\d{3,}", name) for name in names):
        return False
    visits = defaultdict(list)
    for name in names:
        visits[name[:-digits]].append(int(name[-digits:]))
    return all(
        sorted(found) in (list(range(len(found))), list(range(1, len(found) + 1))) and len(found) < 10**digits
        for found in visits.values()
    )
