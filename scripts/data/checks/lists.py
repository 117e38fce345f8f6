# SPDX-License-Identifier: Apache-2.0
"""Check the datalist: files that do not exist, missing labels, images in two lists, and label files not listed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from scripts.data.checks.finding import Finding, Kind
from scripts.data.naming import split_roles
from scripts.data.spec import ROLES, CaseLists, images_of
from scripts.images.find import image_files
from scripts.images.header import PAIR
from scripts.images.read import ENDINGS, exists


def labels_alone(images: Iterable[str], labels: Iterable[str]) -> list[Finding]:
    """Report files in the folders of the labels that are not in the datalist. No file is opened.

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
        if folder in folders_of_images:  # then file names show which of the others are labels
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
    except OSError:  # a missing folder is reported by missing_files, through its labels
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
