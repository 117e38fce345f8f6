# SPDX-License-Identifier: Apache-2.0
"""Unlabelled cases that an annotator has labelled since: a file in one folder makes a case a labelled one."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.data.cases import Case, CaseLists, images_of
from scripts.data.checks.finding import Finding, Kind
from scripts.images.find import output_names
from scripts.images.header import case_name, ending_of

logger = logging.getLogger("datalist")


def label_file_names(cases: Sequence[Case]) -> list[str]:
    """What a label file for each case is called, without ending; no two the same.

    A case's own name; cases that share it are named with their folders, as outputs of inference are.

    Args:
        cases: all that train or validate, however they are divided: a name must not depend on `labelled_cases`.
    """
    count = Counter(case["case"] for case in cases)
    longer = output_names([images_of(case)[0] for case in cases])
    return [
        (case["case"] if count[case["case"]] == 1 else name).replace(os.sep, "_")
        for case, name in zip(cases, longer, strict=True)
    ]


def names_of(lists: CaseLists, cases: Sequence[Case]) -> list[str]:
    """`label_file_names` of some of the training and validation cases of `lists`."""
    known = lists.labelled + lists.unlabelled + lists.validation
    by_image = {images_of(case)[0]: name for case, name in zip(known, label_file_names(known), strict=True)}
    return [by_image[images_of(case)[0]] for case in cases]


def with_corrected_labels(lists: CaseLists, folder: Path) -> tuple[CaseLists, list[Finding]]:
    """The cases, with those labelled at the end of the labelled ones for which `folder` holds a label file.

    Args:
        lists: the cases of a datalist.
        folder: of files called after unlabelled cases (`label_file_names`), of any format; it need not exist.

    Returns:
        The cases; and findings for files that belong to no training case, or of which one case has two. A file for a
        case that the datalist labels is passed over: the datalist's label is used.
    """
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".")) if folder.is_dir() else []
    by_name: dict[str, list[Path]] = {}
    for file in files:
        if ending_of(file) is not None:
            by_name.setdefault(case_name(file), []).append(file)
    if not by_name:
        return lists, []
    findings = []
    labelled: list[Case] = []
    unlabelled: list[Case] = []
    for case, name in zip(lists.unlabelled, names_of(lists, lists.unlabelled), strict=True):
        found = by_name.pop(name, [])
        (labelled if found else unlabelled).append({**case, "label": str(found[0])} if found else case)
        if len(found) > 1:
            sentence = f"{found[0]} and {found[1].name} are labels of one case: keep one of them in {folder}."
            findings.append(Finding(Kind.BAD_ENTRY, sentence, str(found[1]), case["case"], "labelled"))
    superfluous = set(names_of(lists, lists.labelled + lists.validation)) & set(by_name)
    for name in sorted(set(by_name) - superfluous):
        sentence = (
            f"{by_name[name][0]} is called after no training case: a corrected label must have the name that "
            "`run pseudo_label` gave it."
        )
        findings.append(Finding(Kind.BAD_ENTRY, sentence, str(by_name[name][0])))
    logger.info(f"{len(labelled)} unlabelled cases have a corrected label in {folder} and train as labelled ones.")
    return replace(lists, labelled=lists.labelled + labelled, unlabelled=unlabelled), findings
