# SPDX-License-Identifier: Apache-2.0
"""Checks of all cases together: gaps and repetitions in the datalist, duplicate images, patients, and outliers."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.data.checks.finding import Finding, Kind
from scripts.data.corrected_labels import nnunet_pseudo_labels
from scripts.data.naming import split_roles
from scripts.data.patients import guess_patients, possible_patients
from scripts.data.spec import ROLES, Case, CaseLists, cases_with_roles, images_of
from scripts.images.find import image_files
from scripts.images.header import ENDINGS, PAIR, VolumeHeader
from scripts.images.read import exists


def labels_alone(images: Iterable[str], labels: Iterable[str]) -> list[Finding]:
    """Report files in the folders of the labels that are not in the datalist. No image file is opened.

    Pseudo-labels for nnU-Net (`nnunet_pseudo_labels`) are not reported: they must not become labels.

    Args:
        images: all images in the datalist.
        labels: all labels in the datalist, including those of unlabelled cases.
    """
    images, labels = ({os.path.normpath(path) for path in paths} for paths in (images, labels))
    folders_of_images = {str(Path(path).parent) for path in images}
    findings = []
    for folder in sorted({str(Path(path).parent) for path in labels}):
        listed = images | labels
        listed |= {str(Path(path).with_suffix(PAIR[0])) for path in listed if path.endswith(PAIR[1])}
        files = [name for name in _files(folder) if os.path.join(folder, name) not in listed]
        pseudo = nnunet_pseudo_labels([Path(folder, name) for name in files])
        files = [name for name in files if Path(folder, name) not in pseudo]
        if folder in folders_of_images:  # only file names show which other files are labels
            files = split_roles(files)[1]
        for name in files:
            path = os.path.join(folder, name)
            sentence = (
                f"{path} is in a folder of labels, but not in the datalist: list it with its image, or remove it."
            )
            findings.append(Finding(Kind.LABEL_ALONE, sentence, path))
    return findings


def _files(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # `missing_files` reports the labels of a missing folder
        return []
    files = [Path(folder, name) for name in names if not name.startswith(".")]
    return [file.name for file in image_files(files)[0]]


def missing_labels(lists: CaseLists, path: Path) -> list[Finding]:
    """Report labelled, validation and test cases without a label.

    Args:
        lists: the cases.
        path: path of the datalist, for the messages.
    """
    findings = []
    for role in ("labelled", "validation", "test"):
        for case in getattr(lists, role):
            if "label" not in case:
                kind = Kind.TEST_WITHOUT_LABEL if role == "test" else Kind.MISSING_LABEL
                sentence = _without_label(role, case["case"], path, len(lists.labelled))
                findings.append(Finding(kind, sentence, images_of(case)[0], case["case"], role))
    return findings


def _without_label(role: str, name: str, path: Path, labelled: int) -> str:
    if role == "labelled":
        return (
            f"labelled_cases selects {labelled} training cases, but case {name} among them has no label in "
            f"{path}: put labelled cases first or lower labelled_cases."
        )
    if role == "validation":
        return (
            f"The validation case {name} in {path} has no label to compare with: give it one, or move it to the list "
            "`unlabeled`."
        )
    return (
        f"The test case {name} in {path} has no label, so evaluation refuses the test cases: give it one, or remove "
        "it from the list `test`."
    )


def missing_files(lists: CaseLists) -> list[Finding]:
    """Report files that do not exist, and labels that are folders, except for labels of unlabelled cases."""
    findings = []
    for role in ROLES:
        for case in getattr(lists, role):
            label = [case["label"]] if "label" in case else []
            for kind, paths in ((Kind.MISSING_IMAGE, images_of(case)), (Kind.MISSING_LABEL, label)):
                for path in paths:
                    if not exists(path):
                        sentence = f"{path}, named by the datalist, does not exist: correct the path or --dataset_dir."
                        findings.append(Finding(kind, sentence, path, case["case"], role))
            if label and Path(label[0]).is_dir():
                sentence = f"{label[0]}, a label in the datalist, is a folder: labels are files ({', '.join(ENDINGS)})."
                findings.append(Finding(Kind.UNREADABLE, sentence, label[0], case["case"], role))
    return findings


def two_lists(lists: CaseLists) -> list[Finding]:
    """Report images that are in the lists of two roles."""
    role_of: dict[str, str] = {}
    findings = []
    for role in ROLES:
        for case in getattr(lists, role):
            for path in images_of(case):
                other = role_of.setdefault(os.path.normpath(path), role)
                if other != role:
                    sentence = (
                        f"{path} has two roles, {other} and {role}: keep it in one list of the datalist, or "
                        "lower labelled_cases."
                    )
                    findings.append(Finding(Kind.TWO_LISTS, sentence, path, case["case"], role))
    return findings


def shared_labels(lists: CaseLists) -> list[Finding]:
    """Report label files of two different images: `LABEL_LEAK` across splits, otherwise `LABEL_TWICE`.

    Within a split this may be intended, because several contrasts of one scan can share a label.
    """
    first: dict[str, tuple[Case, str]] = {}
    findings = []
    for case, role in cases_with_roles(lists, "labelled", "validation", "test"):
        if "label" not in case:
            continue
        other, other_role = first.setdefault(os.path.normpath(case["label"]), (case, role))
        images = [set(map(os.path.normpath, images_of(each))) for each in (case, other)]
        if images[0] & images[1]:  # an image in two lists is reported by `two_lists`
            continue
        kind = Kind.LABEL_TWICE if SPLIT[role] == SPLIT[other_role] else Kind.LABEL_LEAK
        sentence = (
            f"{case['label']} is the label of {other['case']} ({other_role}) and of {case['case']} ({role}), which are "
            "different images: correct the datalist, or put both cases into one list if they show the same."
        )
        findings.append(Finding(kind, sentence, case["label"], case["case"], role))
    return findings


SPLIT = {"labelled": "train", "unlabelled": "train", "validation": "validation", "test": "test"}
"""The split of each role. Two splits must not share an image, or the scores would be meaningless."""


@dataclass(frozen=True)
class Content:
    """An image file and the digest of its intensities."""

    path: str
    case: str
    role: str
    digest: bytes


def duplicates(contents: Iterable[Content]) -> list[Finding]:
    """Report each case that has the same image as an earlier one: `LEAK` across splits, otherwise `DUPLICATE`."""
    groups: dict[bytes, list[Content]] = defaultdict(list)
    findings = []
    told: set[tuple[str, str, str, str]] = set()
    for content in contents:
        earlier = groups[content.digest]
        others = [other for other in earlier if SPLIT[other.role] != SPLIT[content.role]] or earlier
        earlier.append(content)
        if len(earlier) == 1:
            continue
        first = others[0]
        pair = (first.role, first.case, content.role, content.case)
        same_file = os.path.normpath(first.path) == os.path.normpath(content.path)
        # Report a copied case once, not per channel. A file in two lists is reported by `two_lists`.
        if pair in told or (same_file and first.role != content.role):
            continue
        told.add(pair)
        findings.append(_finding(first, content))
    return findings


def _finding(first: Content, content: Content) -> Finding:
    same = f"{content.path} ({content.role}) and {first.path} ({first.role}) contain the same image"
    if SPLIT[first.role] == SPLIT[content.role]:
        kind, sentence = Kind.DUPLICATE, f"{same}: remove one from the datalist, or it counts twice."
    else:
        kind, sentence = Kind.LEAK, f"{same}: remove one from the datalist, or the scores are meaningless."
    return Finding(kind, sentence, content.path, content.case, content.role)


def patients_on_both_sides(members: Sequence[Member]) -> list[Finding]:
    """Report patients, as far as they can be guessed, with cases in two of training, validation and test.

    Of large groups that may be patients or not, only the first is reported.
    """
    cases = [(member.case, member.header.path) for member in members]
    patients, _ = guess_patients(cases)
    possible = {} if patients else possible_patients(cases)
    of_patient: dict[str, list[Member]] = defaultdict(list)
    for member in members if patients or possible else []:
        of_patient[(patients or possible)[member.case]].append(member)
    findings = []
    for group in of_patient.values():
        other = next((each for each in group if SPLIT[each.role] != SPLIT[group[0].role]), None)
        if other is not None:
            way = " with --patient_pattern of new-dataset" if possible else ""
            sentence = (
                f"{group[0].case} ({group[0].role}) and {other.case} ({other.role}) {'may' if possible else 'seem to'} "
                f"be of one patient by name or folder: put all cases of a patient into one list{way}, or the scores "
                "will be too high."
            )
            findings.append(other.finding(Kind.SAME_PATIENT, sentence))
    return findings[:1] if possible else findings


FEWEST = 5  # minimum number of cases; fewer do not show what is usual
FACTOR = 2.0  # ratio to the median; a smaller one is never unusual
SPREADS = 5.0  # robust standard deviations from the median, for data that vary by more than `FACTOR`


@dataclass(frozen=True)
class Member:
    """A case to compare with others.

    Attributes:
        case: name of the case.
        role: list of the case in `CaseLists`.
        header: header of the first image file.
    """

    case: str
    role: str
    header: VolumeHeader

    def finding(self, kind: Kind, sentence: str) -> Finding:
        """Make a finding about this case."""
        return Finding(kind, sentence, self.header.path, self.case, self.role)


def unlike_the_rest(members: Sequence[Member]) -> list[Finding]:
    """Report cases with unusual spacing, size in mm or orientation; nothing for fewer than `FEWEST` cases."""
    if len(members) < FEWEST:
        return []
    ras = [replace(member, header=member.header.in_ras()) for member in members]
    return [*_spacing_and_size(ras), *_orientation(members)]


def far_from_median(values: np.ndarray) -> np.ndarray:
    """Find rows that differ from the median by more than `FACTOR` and by more than `SPREADS` standard deviations.

    Args:
        values: `(cases, axes)`, positive; compared on a log scale, so that half and twice the median are equally far.

    Returns:
        `(cases,)`, true where this holds for any axis.
    """
    logs = np.log(values)
    deviations = np.abs(logs - np.median(logs, axis=0))
    spread = 1.4826 * np.median(deviations, axis=0)  # MAD to standard deviation, for a normal distribution
    return (deviations > np.maximum(np.log(FACTOR), SPREADS * spread)).any(axis=1)


def _spacing_and_size(members: Sequence[Member]) -> list[Finding]:
    spacings = np.array([member.header.spacing for member in members])
    sizes = spacings * [member.header.shape for member in members]
    wide = far_from_median(spacings)
    large = far_from_median(sizes) & ~wide  # a wrong spacing also gives a wrong size, so report it once
    findings = []
    for index, member in enumerate(members):
        if wide[index]:
            sentence = (
                f"{member.header.path} has a spacing of {_mm(spacings[index])}, far from the median of "
                f"{_mm(np.median(spacings, axis=0))}: check its header."
            )
            findings.append(member.finding(Kind.SPACING, sentence))
        if large[index]:
            sentence = (
                f"{member.header.path} measures {_mm(sizes[index])}, far from the median of "
                f"{_mm(np.median(sizes, axis=0))}: check that it shows the same part of the body."
            )
            findings.append(member.finding(Kind.SIZE, sentence))
    return findings


def _orientation(members: Sequence[Member]) -> list[Finding]:
    members = [member for member in members if member.header.oriented]  # the others are reported by orientation_given
    if not members:
        return []
    usual, count = Counter(member.header.axcodes for member in members).most_common(1)[0]
    if 2 * count <= len(members):
        return []
    return [
        member.finding(
            Kind.ORIENTATION,
            f"{member.header.path} is stored as {member.header.axcodes}, {count} of {len(members)} cases as {usual}: "
            "it is reoriented to RAS according to its header.",
        )
        for member in members
        if member.header.axcodes != usual
    ]


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values) + " mm"
