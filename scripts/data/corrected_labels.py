# SPDX-License-Identifier: Apache-2.0
"""Label files that are not in the datalist: corrected labels, labels of other programs, and pseudo-labels."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.data.checks.finding import Finding, Kind
from scripts.data.spec import Case, CaseLists, images_of
from scripts.errors import UserError
from scripts.files import read_text
from scripts.images.find import output_names, passed_over, walk_images
from scripts.images.header import SLICER, case_name, ending_of

logger = logging.getLogger("datalist")

PSEUDO = "pseudo_labels"
"""Folder of uncorrected pseudo-labels (docs/labelling.md), and key of their list in the `dataset.json` for nnU-Net."""


def nnunet_pseudo_labels(files: Iterable[Path]) -> set[Path]:
    """Return the label files that are pseudo-labels in a folder written by `pseudo-label --layout nnunet`.

    Args:
        files: label files. Those in a folder `labelsTr` are looked up in the `dataset.json` beside that folder.
    """
    names: dict[Path, set[str]] = {}
    for folder in {file.parent for file in files if file.parent.name == "labelsTr"}:
        try:
            listed = json.loads(read_text(folder.parent / "dataset.json"))[PSEUDO]
            names[folder] = {name for name in listed if isinstance(name, str)}
        except (OSError, ValueError, KeyError, TypeError):  # the file of another program
            continue
    return {file for file in files if case_name(file) in names.get(file.parent, ())}


def unique_names(cases: Sequence[Case]) -> list[str]:
    """Return a unique name for each case, under which its label or prediction is stored.

    If cases have the same name (`a/imaging.nii.gz`, `b/imaging.nii.gz`), the folder is added to the name, as in the
    output of inference.

    Args:
        cases: all training and validation cases, so that the names do not depend on `labelled_cases`.
    """
    count = Counter(case["case"] for case in cases)
    longer = output_names([images_of(case)[0] for case in cases])
    return [
        (case["case"] if count[case["case"]] == 1 else name).replace(os.sep, "_")
        for case, name in zip(cases, longer, strict=True)
    ]


def with_corrected_labels(lists: CaseLists, folder: Path) -> tuple[CaseLists, list[Finding]]:
    """Move the unlabelled cases with a label file in `folder` to the end of the labelled cases.

    Args:
        lists: the cases of a datalist.
        folder: folder of label files in any format (including `.seg.nrrd`), named like the cases, also in subfolders;
            it need not exist.

    Returns:
        The cases, and findings about files that belong to no training case and about cases with two files. If a case
        already has a label in the datalist, the file is ignored and the datalist's label is used.

    Raises:
        UserError: if a folder other than the default one does not exist.
    """
    if folder.name != "corrected_labels" and not folder.is_dir():
        raise UserError(f"corrected_labels names {folder}, which is not a folder: correct the path, or leave it out.")
    by_name = _files_by_name(lists, folder)
    if not by_name:
        return lists, []
    cases, findings, strange = _with_files(lists, by_name, "labelled", folder)
    for file in strange:
        sentence = (
            f"{file} does not have the name of a training case: keep the file name that `python -m scripts "
            "pseudo-label` gave it."
        )
        findings.append(Finding(Kind.BAD_ENTRY, sentence, str(file)))
    labelled, unlabelled = ([case for case in cases if ("label" in case) is has] for has in (True, False))
    logger.info(f"{len(labelled)} unlabelled cases have a corrected label in {folder} and are used as labelled cases.")
    return replace(lists, labelled=lists.labelled + labelled, unlabelled=unlabelled), findings


def with_foreign_labels(lists: CaseLists, folder: Path | None) -> tuple[CaseLists, list[Finding]]:
    """Give unlabelled cases the label file of another program as `label`, for checks and for self-training.

    The cases stay unlabelled: no other part of a run receives these lists.

    Args:
        lists: the cases of a datalist.
        folder: folder of label files named like the cases, also in subfolders; with `None` the lists stay unchanged.

    Returns:
        The cases, and findings about cases with two files and about files that belong to no unlabelled case. The latter
        is only a warning, because a fold of `crossval` leaves out cases. A file for a labelled case is ignored.

    Raises:
        UserError: if the folder does not exist.
    """
    if folder is None:
        return lists, []
    if not folder.is_dir():
        raise UserError(f"foreign_labels names {folder}, which is not a folder: correct the path, or leave it out.")
    unlabelled, findings, strange = _with_files(lists, _files_by_name(lists, folder), "unlabelled", folder)
    for file in strange:
        sentence = f"{file} does not have the name of an unlabelled case, so it is not used: rename it."
        findings.append(Finding(Kind.LABEL_ALONE, sentence, str(file)))
    return replace(lists, unlabelled=unlabelled), findings


def _with_files(
    lists: CaseLists, by_name: Mapping[str, Sequence[Path]], role: str, folder: Path
) -> tuple[list[Case], list[Finding], list[Path]]:
    """Add label files to unlabelled cases; also return findings about second files, and files without a case.

    A file in `folder` itself comes before those in subfolders, such as an earlier copy. What is read from a subfolder
    or passed over there is named in a warning.
    """
    cases, findings = [], []
    for case in lists.unlabelled:
        files = by_name.get(case["case"], [])
        cases.append({**case, "label": str(files[0])} if files else case)
        if not files:
            continue
        direct = files[0].parent == folder
        if len(files) > 1 and direct and files[1].parent != folder:
            logger.warning(f"{files[0]} is the label of {case['case']}; {files[1]} is not used.")
        elif len(files) > 1:
            sentence = f"{files[0]} and {files[1]} are labels of the same case: remove one of them."
            findings.append(Finding(Kind.BAD_ENTRY, sentence, str(files[1]), case["case"], role))
        elif not direct:
            logger.warning(f"{files[0]}, in a subfolder, is used as the label of {case['case']}.")
    known = {case["case"] for case in lists.labelled + lists.unlabelled + lists.validation}
    return cases, findings, [by_name[name][0] for name in sorted(set(by_name) - known)]


def _files_by_name(lists: CaseLists, folder: Path) -> dict[str, list[Path]]:
    """Map case names to the label files in a folder, which need not exist, and its subfolders."""
    others: list[Path] = []
    found = list(walk_images(folder, others)) if folder.is_dir() else []
    labels = sorted(found, key=lambda file: (len(file.parts), file))
    by_name: dict[str, list[Path]] = {}
    known = {case["case"] for case in lists.labelled + lists.unlabelled + lists.validation}
    for file in labels:
        name = case_name(file)
        if ending_of(file) in SLICER and f"{name}.seg" in known:
            name += ".seg"  # the name of the image itself ends in `.seg`
        by_name.setdefault(name, []).append(file)
    if others:
        logger.warning(passed_over(others, folder))
    return by_name
