# SPDX-License-Identifier: Apache-2.0
"""Guess which cases are of one patient, from the names of files and folders."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scripts.data.naming import SEPARATOR, is_image_folder, is_label_folder, is_part_folder
from scripts.errors import UserError
from scripts.images.header import case_name

MOST_CASES = 4  # maximum cases per patient, unless there are more patients than that or words say that they are some
FEWEST_PATIENTS = 3  # fewer groups are more likely sites or years

_NUMBER = rf"{SEPARATOR}?\d+"
_PATIENT = re.compile(
    rf"(?:.*[^a-z])?(?:patient|pat|pt|subject|subj|sub|participant|volunteer|person|animal|mouse|rat){_NUMBER}", re.I
)
_SITE = re.compile(
    r"(?:.*[^a-z])?(?:site|center|centre|hospital|clinic|institut\w*|scanner|vendor|fold|batch|part|set|group|cohort|study|"
    rf"data|dataset|year|task|version|release|archive){_NUMBER}",
    re.I,
)
_VISIT = re.compile(
    rf"{SEPARATOR}*(?:frame|visit|timepoint|tp|time|session|ses|day|week|month|phase|followup|fu|repeat|rep){_NUMBER}",
    re.I,
)
_WORD_AND_NUMBER = re.compile(rf"(?:.*[^a-z])?[a-z]+{_NUMBER}", re.I)
_NEXT_NUMBER = re.compile(rf"{SEPARATOR}*[a-z]*{_NUMBER}", re.I)


@dataclass(frozen=True)
class _Grouping:
    """A way to group cases.

    Attributes:
        what: what the cases of a group share.
        keys: group of each case; a case without one has a key of its own.
        rests: what follows the key in the name or path of each case.
        sure: whether the groups are patients by definition.
        cut: whether the keys end within a number, as in `patient00` of `patient001`, so that a word in front of it says
            nothing about the group.
        only_by_word: whether the groups are patients only if a word in front of their number says so.
    """

    what: str
    keys: list[str]
    rests: list[str]
    sure: bool = False
    cut: bool = False
    only_by_word: bool = False

    def are_patients(self) -> bool:
        """Whether the groups are several patients, judged by their number and size and by the words in the names."""
        sizes = Counter(self.keys)
        if max(sizes.values(), default=0) < 2 or len(sizes) < 2:
            return False
        if self.sure or (not self.cut and self._all(_PATIENT.fullmatch)):
            return True
        if len(sizes) < FEWEST_PATIENTS or self.only_by_word:
            return False
        few = max(sizes.values()) <= max(MOST_CASES, len(sizes))
        return few or (self._all(lambda key: not _SITE.fullmatch(key)) and self._all(None, _VISIT.match))

    def may_be_patients(self) -> bool:
        """Whether large groups have names such as `knee01_03`, which may be patients or sites."""
        sizes = Counter(self.keys)
        return (
            not self.cut
            and sum(size > 1 for size in sizes.values()) >= FEWEST_PATIENTS
            and self._all(lambda key: _WORD_AND_NUMBER.fullmatch(key) and not _SITE.fullmatch(key))
            and (self.only_by_word or self._all(None, _NEXT_NUMBER.match))
        )

    def _all(self, of_key: Callable[[str], object] | None, of_rest: Callable[[str], object] | None = None) -> bool:
        """Whether conditions hold for every case in a group of several."""
        sizes = Counter(self.keys)
        pairs = [pair for pair in zip(self.keys, self.rests, strict=True) if sizes[pair[0]] > 1]
        return all((not of_key or of_key(key)) and (not of_rest or of_rest(rest)) for key, rest in pairs)

    def example(self, names: Sequence[str]) -> str:
        """Return the names of the cases in the first group of several, shortened."""
        sizes = Counter(self.keys)
        first = next(key for key in self.keys if sizes[key] > 1)
        together = [name for name, key in zip(names, self.keys, strict=True) if key == first]
        return ", ".join(together[:MOST_CASES]) + (", ..." if len(together) > MOST_CASES else "")


def guess_patients(cases: Sequence[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """Group cases into patients.

    Cases belong to the same patient if they share one of the following, tried in this order:

    - a BIDS subject (`sub-01`);
    - a folder;
    - the beginning of the name up to a separator, if it has a digit (`patient001_frame01`);
    - all but the last letter of the name, after a digit (`001L`, `001R`);
    - the last word of the name, if it is a word for a patient and a number (`pre_sub01`, `post_sub01`);
    - the leading digits of a number whose last one or two digits count from 0 or 1 for each patient (`study_0300`,
      `study_0301`).

    A criterion is used only if it gives several patients with few cases each; otherwise the groups are probably sites
    or plain numbers. Groups of any size are patients if a word says so: `patient` or `subject` in front of the number
    that they share, or `frame` or `visit` behind it.

    Args:
        cases: name and image file of each case; names are unique.

    Returns:
        The patient of each case by name (empty if every case counts as a separate patient), and a sentence that
        describes the grouping, or large groups that may be patients (empty if there is none).

    Example:
        >>> guess_patients([(f"p{n}_{v}", f"p{n}_{v}.nii") for n in range(3) for v in "ab"])[0]["p2_b"]
        'p2'
        >>> guess_patients([(f"case_{n}", f"case_{n}.nii") for n in range(6)])
        ({}, '')
    """
    names = [name for name, _ in cases]
    found, certain = _best_grouping(cases)
    if found is None:
        return {}, ""
    if certain:
        sentence = (
            f"The {len(names)} cases seem to be from {len(set(found.keys))} patients, because they share {found.what} "
            f"({found.example(names)}). All cases of a patient stay on one side of a split. Set patient_pattern to "
            "change this ('.*': every case is a separate patient)."
        )
        return dict(zip(names, found.keys, strict=True)), sentence
    return {}, (
        f"Cases that share {found.what} ({found.example(names)}) may be of one patient, but each counts as a "
        "separate patient: if they are, set patient_pattern, or a patient can be in training and test."
    )


def possible_patients(cases: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the groups that `guess_patients` only mentions, by case name; empty if it finds patients or none.

    Args:
        cases: see `guess_patients`.
    """
    found, certain = _best_grouping(cases)
    return {} if found is None or certain else dict(zip((name for name, _ in cases), found.keys, strict=True))


def _best_grouping(cases: Sequence[tuple[str, str]]) -> tuple[_Grouping | None, bool]:
    """Return the first grouping into patients, else the first that may be one, and whether it is certain."""
    groupings = [replace(grouping, keys=_one_spelling(grouping.keys)) for grouping in _groupings(cases)]
    patients = next((grouping for grouping in groupings if grouping.are_patients()), None)
    if patients is not None:
        return patients, True
    return next((grouping for grouping in groupings if grouping.may_be_patients()), None), False


def _one_spelling(keys: Sequence[str]) -> list[str]:
    """Replace keys that differ in upper and lower case only by the first of them."""
    first: dict[str, str] = {}
    return [first.setdefault(key.lower(), key) for key in keys]


def _groupings(cases: Sequence[tuple[str, str]]) -> Iterator[_Grouping]:
    names = [name for name, _ in cases]
    subjects = [re.search(r"(?<![a-z0-9])sub-[a-z0-9]+", path, re.IGNORECASE) for _, path in cases]
    if all(subjects):
        yield _Grouping("a BIDS subject", [found[0] for found in subjects if found], [""] * len(names), sure=True)
    places = _places([path for _, path in cases])
    for depth in range(1, max(map(len, places), default=0) + 1):
        pairs = list(zip(cases, places, strict=True))
        keys = ["/".join(place[:depth]) if len(place) >= depth else name for (name, _), place in pairs]
        yield _Grouping(
            "a folder", keys, [[*place, case_name(path)][min(depth, len(place))] for (_, path), place in pairs]
        )
    words = [re.split(rf"(?<={SEPARATOR})", name) for name in names]
    for count in range(1, max(map(len, words), default=0)):
        starts = ["".join(each[:count]) if len(each) > count else "" for each in words]
        keys = [re.sub(rf"{SEPARATOR}+$", "", start) if re.search(r"\d", start) else "" for start in starts]
        for index, place in enumerate(places):
            if keys[index] in {"_".join(place[:depth]) for depth in range(1, len(place) + 1)}:
                keys[index] = ""  # the folder, which makes the names of cases unique
        rests = [name[len(key) :] for key, name in zip(keys, names, strict=True)]
        keys = [key or name for key, name in zip(keys, names, strict=True)]
        yield _Grouping("the beginning of their names", keys, rests)
    letters = [re.fullmatch(r"(.*\d)([a-z])", name, re.IGNORECASE) for name in names]
    if all(letters):
        parts = [found.groups() for found in letters if found]
        yield _Grouping("all but the last letter of their names", [key for key, _ in parts], [end for _, end in parts])
    last = [each[-1] for each in words]
    if all(len(each) > 1 and re.fullmatch(r"[a-z]+\d+", each[-1], re.IGNORECASE) for each in words):
        rests = [name[: -len(word)] for name, word in zip(names, last, strict=True)]
        yield _Grouping("the end of their names", last, rests, only_by_word=True)
    for digits in (2, 1):
        if _count_visits(names, digits):
            ends = [name[-digits:] for name in names]
            yield _Grouping("the beginning of their numbers", [name[:-digits] for name in names], ends, cut=True)


def _places(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the folders of each file, without those that all files share and those for images, labels or parts."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath(folders) if folders else ""
    return [tuple(filter(_may_be_a_patient, os.path.relpath(folder, root).split(os.sep))) for folder in folders]


def _may_be_a_patient(folder: str) -> bool:
    return folder != "." and not is_part_folder(folder) and not is_image_folder(folder) and not is_label_folder(folder)


def _count_visits(names: Sequence[str], digits: int) -> bool:
    """Whether the last digits count from 0 or 1 for each beginning of the names, and never use up all numbers."""
    if not all(re.fullmatch(r".*\d{3,}", name) for name in names):
        return False
    visits = defaultdict(list)
    for name in names:
        visits[name[:-digits]].append(int(name[-digits:]))
    return all(
        sorted(found) in (list(range(len(found))), list(range(1, len(found) + 1))) and len(found) < 10**digits
        for found in visits.values()
    )


def patient_of(name: str, pattern: str | Mapping[str, str] | None) -> str:
    """Return the patient of a case.

    Args:
        name: name of the case.
        pattern: regular expression that finds the patient in the name, or a mapping from case names to patients
            (`guess_patients`). Without a pattern or a match, the whole name is the patient.

    Raises:
        UserError: for an invalid regular expression.
    """
    if not isinstance(pattern, str):
        return name if pattern is None else pattern.get(name, name)
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--patient_pattern {pattern!r} is not a valid regular expression: {error}.") from error
    return found[0] if found else name


def patients_of(cases: Sequence[tuple[str, str]], pattern: str | None) -> tuple[dict[str, str], str]:
    """Return the patient of each case by name, and a sentence about the guess (empty if there was none).

    Args:
        cases: name and image file of each case; names are unique.
        pattern: see `patient_of`; with `None` the patients are guessed.

    Raises:
        UserError: for an invalid regular expression.
    """
    found, sentence = guess_patients(cases) if pattern is None else (pattern, "")
    return {name: patient_of(name, found) for name, _ in cases}, sentence
