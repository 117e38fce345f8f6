# SPDX-License-Identifier: Apache-2.0
"""The folds of a cross-validation: which labelled cases are held out together, and the datalist of each fold."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from scripts.data.cases import Case, CaseLists, images_of
from scripts.data.patients import guess_patients
from scripts.dataset_setup.roles import patient_of
from scripts.errors import UserError

logger = logging.getLogger("crossval")

LEAVE_ONE_OUT = 10
"""Up to this many patients each is a fold of its own."""

FOLDS = 5
"""Folds of a larger dataset."""


def make_folds(cases: list[Case], number: int | None = None, patient_pattern: str | None = None) -> list[list[Case]]:
    """Divide labelled cases into folds.

    Patients are dealt to the folds in turn, in the order of the datalist, so that the folds differ by at most one
    patient and the division does not depend on a seed.

    Args:
        cases: labelled cases.
        number: of folds; `None`: one per patient for up to 10 patients, otherwise 5.
        patient_pattern: regular expression that finds the patient in a case's name; cases of one patient are in the
            same fold. `None`: patients are guessed, see `guess_patients`, and named in the log.

    Returns:
        The held-out cases of each fold; each case is in one fold.

    Raises:
        UserError: for fewer than two patients, an invalid pattern, or a number that is not from 2 to that of patients.

    Example:
        >>> cases = [{"case": name} for name in ("a_1", "b_1", "a_2")]
        >>> [[case["case"] for case in fold] for fold in make_folds(cases, patient_pattern="^.")]
        [['a_1', 'a_2'], ['b_1']]
    """
    found: str | dict[str, str] | None = patient_pattern
    if found is None:
        found, sentence = guess_patients([(case["case"], images_of(case)[0]) for case in cases])
        if sentence:
            logger.warning(sentence)
    patients: dict[str, list[Case]] = {}
    for case in cases:
        patients.setdefault(patient_of(case["case"], found), []).append(case)
    if len(patients) < 2:
        raise UserError(
            f"Cross-validation needs labelled cases of at least two patients, got {len(cases)} of {len(patients)}: "
            "raise labelled_cases, or label a second case."
        )
    if number is None:
        number = len(patients) if len(patients) <= LEAVE_ONE_OUT else FOLDS
    if not 2 <= number <= len(patients):
        raise UserError(f"folds must be from 2 to {len(patients)}, the number of patients, got {number}.")
    groups = list(patients.values())
    return [[case for group in groups[fold::number] for case in group] for fold in range(number)]


def fold_datalist(cases: CaseLists, held_out: list[Case]) -> dict[str, Any]:
    """The datalist of one fold: held-out cases are test cases, the other labelled and all unlabelled ones train.

    Args:
        cases: of the dataset; its validation and test cases are not used.
        held_out: some of its labelled cases.

    Returns:
        Content of a datalist with absolute paths.
    """
    names = [images_of(case)[0] for case in held_out]
    rest = [case for case in cases.labelled if images_of(case)[0] not in names]
    return {
        "training": [_entry(case) for case in rest],
        "unlabeled": [_entry(case) for case in cases.unlabelled],
        "test": [_entry(case) for case in held_out],
    }


def _entry(case: Case) -> dict[str, Any]:
    images = [str(Path(image).absolute()) for image in images_of(case)]
    entry = {"case": case["case"], "image": images if isinstance(case["image"], list) else images[0]}
    return entry | ({"label": str(Path(case["label"]).absolute())} if "label" in case else {})
