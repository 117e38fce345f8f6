# SPDX-License-Identifier: Apache-2.0
"""The folds of a cross-validation: which labelled cases are held out together, and the datalist of each fold."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.data.naming import guess_patients
from scripts.data.spec import Case, CaseLists, images_of
from scripts.dataset_setup.roles import patient_of
from scripts.errors import UserError

logger = logging.getLogger("crossval")

LEAVE_ONE_OUT = 10
"""Up to this many patients each is a fold of its own."""

FOLDS = 5
"""Folds of a larger dataset."""


def find_patients(cases: CaseLists, pattern: str | None = None) -> dict[str, str]:
    """The patient of each labelled and unlabelled case, by the case's name.

    Args:
        cases: of the dataset.
        pattern: regular expression that finds the patient in a case's name. `None`: patients are guessed, see
            `guess_patients`, and named in the log.

    Raises:
        UserError: for an invalid pattern.
    """
    training = [*cases.labelled, *cases.unlabelled]
    found: str | dict[str, str] | None = pattern
    if found is None:
        found, sentence = guess_patients([(case["case"], images_of(case)[0]) for case in training])
        if sentence:
            logger.warning(sentence)
    return {case["case"]: patient_of(case["case"], found) for case in training}


def make_folds(cases: list[Case], patient: Mapping[str, str], number: int | None = None) -> list[list[Case]]:
    """Divide labelled cases into folds.

    Patients are dealt to the folds in turn, in the order of the datalist, so that the folds differ by at most one
    patient and the division does not depend on a seed.

    Args:
        cases: labelled cases.
        patient: of each case, see `find_patients`; cases of one patient are in the same fold.
        number: of folds; `None`: one per patient for up to 10 patients, otherwise 5.

    Returns:
        The held-out cases of each fold; each case is in one fold.

    Raises:
        UserError: for fewer than two patients, or a number that is not from 2 to that of patients.

    Example:
        >>> cases = [{"case": name} for name in ("a_1", "b_1", "a_2")]
        >>> [[case["case"] for case in fold] for fold in make_folds(cases, {"a_1": "a", "b_1": "b", "a_2": "a"})]
        [['a_1', 'a_2'], ['b_1']]
    """
    patients: dict[str, list[Case]] = {}
    for case in cases:
        patients.setdefault(patient[case["case"]], []).append(case)
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


def fold_datalist(cases: CaseLists, held_out: list[Case], patient: Mapping[str, str]) -> dict[str, Any]:
    """The datalist of one fold: held-out cases are test cases; cases of other patients train.

    Args:
        cases: of the dataset; its validation and test cases are not used.
        held_out: some of its labelled cases, all of a patient or none.
        patient: of each case, see `find_patients`.

    Returns:
        Content of a datalist with absolute paths.
    """
    patients = {patient[case["case"]] for case in held_out}
    labelled, unlabelled = (
        [_entry(case) for case in part if patient[case["case"]] not in patients]
        for part in (cases.labelled, cases.unlabelled)
    )
    return {
        "training": labelled,
        "unlabeled": unlabelled,
        "test": [_entry(case) for case in held_out],
    }


def _entry(case: Case) -> dict[str, Any]:
    images = [str(Path(image).absolute()) for image in images_of(case)]
    entry = {"case": case["case"], "image": images if isinstance(case["image"], list) else images[0]}
    return entry | ({"label": str(Path(case["label"]).absolute())} if "label" in case else {})
