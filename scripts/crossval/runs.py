# SPDX-License-Identifier: Apache-2.0
"""Cross-validate a configuration: divide the labelled cases into folds, then train and evaluate each fold."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.cli.overrides import CONFIGS, accepted_options, config_files_of, read_mapping, top_key
from scripts.cli.runs import run_process, shell_line
from scripts.cli.words import parse_words
from scripts.crossval.estimate import PLAIN, RESULT, evaluate_folds, format_result
from scripts.data.patients import patients_of
from scripts.data.spec import Case, CaseLists, images_of
from scripts.errors import UserError
from scripts.evaluation.comparison import mean_per_case, read_dice
from scripts.files import csv_rows, csv_text, write_text

logger = logging.getLogger("crossval")

LEAVE_ONE_OUT = 10
"""With up to this many patients, each patient is one fold."""

FOLDS = 5
"""Number of folds for a larger dataset."""


def find_patients(cases: CaseLists, pattern: str | None = None) -> dict[str, str]:
    """Return the patient of each labelled and unlabelled case, by the name of the case.

    Args:
        cases: cases of the dataset.
        pattern: regular expression that finds the patient in the name of a case. With `None`, patients are guessed
            (see `guess_patients`) and logged.

    Raises:
        UserError: for an invalid pattern.
    """
    training = [*cases.labelled, *cases.unlabelled]
    patients, sentence = patients_of([(case["case"], images_of(case)[0]) for case in training], pattern)
    if sentence:
        logger.warning(sentence)
    return patients


def make_folds(cases: list[Case], patient: Mapping[str, str], number: int | None = None) -> list[list[Case]]:
    """Divide labelled cases into folds.

    Patients are assigned to the folds in turn, in the order of the datalist, so that the folds differ by at most one
    patient and the division does not depend on a seed.

    Args:
        cases: labelled cases.
        patient: patient of each case, see `find_patients`; cases of one patient are in the same fold.
        number: number of folds; `None`: one per patient for up to 10 patients, otherwise 5.

    Returns:
        The held-out cases of each fold; each case is in one fold.

    Raises:
        UserError: for fewer than two patients, or if `number` is not between 2 and the number of patients.

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
    """Make the datalist of one fold: held-out cases are test cases, and cases of other patients are for training.

    Args:
        cases: cases of the dataset; its validation and test cases are not used.
        held_out: some of its labelled cases; for each patient, all cases or none.
        patient: patient of each case, see `find_patients`.

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


ARMS = {"control": "labels only", "method": "method"}
CONTROL = CONFIGS / "methods/supervised.yaml"
COLUMNS = ("fold", "case", "class", "arm", "dice")
WITHOUT_EFFECT = ("bundle_root", "cache", "cache_dir", "debug", "device", "num_workers", "resume")
"""Options that may change when a cross-validation is resumed."""


def cross_validate(
    cases: CaseLists,
    directory: str | Path,
    folds: int | None = None,
    patient_pattern: str | None = None,
    keep_models: bool | str = False,
    cache_dir: str | Path | None = None,
    flip_axes: Sequence[int] = (),
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train the method of this command line and a labels-only control in each fold, and report the expected Dice.

    In each fold some labelled cases are held out: they are not used in training at all, and are evaluated once at the
    end. The control is `configs/methods/supervised.yaml` with otherwise the same settings. A finished fold is not run
    again, and an interrupted training is resumed.

    Args:
        cases: cases of the dataset.
        directory: folder for the folds and the results, `crossval.json` and `crossval.csv`.
        folds: see `make_folds`.
        patient_pattern: see `find_patients`.
        keep_models: whether the trained models of the folds are kept, as an ensemble; otherwise they are deleted.
        cache_dir: folder of cached volumes, shared by all folds.
        flip_axes: axes along which training mirrors patches; if there are any, inference with mirroring is evaluated
            too.
        argv: the command line; `None` takes that of this process.

    Returns:
        Content of `crossval.json`.

    Raises:
        UserError: if there are too few labelled cases, `directory` has results of other settings, or a run fails.
    """
    directory, keep_models = Path(directory).absolute(), str(keep_models).lower() == "true"
    command = _Command(sys.argv if argv is None else argv)
    patient = find_patients(cases, patient_pattern)
    held_out = make_folds(cases.labelled, patient, folds)
    names = [[case["case"] for case in fold] for fold in held_out]
    _check_settings(directory, {**command.settings(), "folds": names, "unlabelled": len(cases.unlabelled)})
    arms = ["control", "method"] if cases.unlabelled and not command.is_control else ["control"]
    options = [PLAIN, "--largest_component true"]
    options += [f"--mirror_axes {json.dumps(list(flip_axes), separators=(',', ':'))}"] if flip_axes else []
    # An option on the command line applies to every evaluation, so it is not evaluated separately.
    options = [option for option in options if option.split(" ")[0].removeprefix("--") not in command.options]
    # By arm, option, class and case.
    dice: dict[str, dict[str, dict[str, dict[str, float]]]] = {arm: {o: {} for o in options} for arm in arms}
    confidence: dict[str, dict[str, float]] = {arm: {} for arm in arms}
    for number, fold in enumerate(held_out, start=1):
        datalist = fold_datalist(cases, fold, patient)
        for arm in arms:
            folder = directory / f"fold_{number}" / arm
            title = f"Fold {number} of {len(held_out)}, {ARMS[arm]}"
            _run_fold(folder, arm, datalist, command, options, cache_dir, title)
            found = {option: _dice_of(folder / f"out_{index}", fold) for index, option in enumerate(options)}
            confidence[arm] |= _confidence_of(folder / f"out_{options.index(PLAIN)}", fold)
            for option, of_classes in found.items():
                for name, values in of_classes.items():
                    dice[arm][option].setdefault(name, {}).update(values)
            shown = ", ".join(f"{case} {value:.4f}" for case, value in mean_per_case(found[PLAIN]).items())
            print(f"{title}: Dice {shown}", flush=True)
            if not keep_models:
                shutil.rmtree(folder / "models", ignore_errors=True)
    result = evaluate_folds(dice["control"], dice.get("method"), len(cases.unlabelled), names, confidence)
    result = {**result, "folds": names, "files": {"control": [str(CONTROL)], "method": command.method_files}}
    fold_of = {name: number for number, fold in enumerate(names, start=1) for name in fold}
    rows = [
        (fold_of[case], case, name, arm, value)
        for arm in arms
        for name, values in dice[arm][PLAIN].items()
        for case, value in values.items()
    ]
    write_text(directory / "crossval.csv", csv_text(COLUMNS, rows))
    write_text(directory / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(format_result(result))
    print(f"Wrote {directory / RESULT} and crossval.csv")
    if keep_models:
        arm = result["use"]
        models = [str(directory / f"fold_{n}" / arm / "models/model.pt") for n in range(1, len(held_out) + 1)]
        print(f"The models of the folds as an ensemble: {shell_line(['--checkpoint', str(models)])}")
    return result


class _Command:
    """The command line of this process, from which the command lines of the folds are made.

    Args:
        argv: `python -m monai.bundle run crossval ...`.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.options, _ = parse_words(argv[2:])
        if "config_file" not in self.options:
            raise UserError(
                "Start a cross-validation with `python -m scripts crossval` or `monai.bundle run crossval`."
            )
        self.files = config_files_of(self.options.pop("config_file"))
        methods = [file for file in self.files if _is_method(file)]
        self.method_files = [str(Path(file).resolve()) for file in methods]
        self.control_files = [file for file in self.files if file not in methods] + [str(CONTROL)]
        self.is_control = self.method_files == [str(CONTROL)]

    def words(self, arm: str = "method") -> list[str]:
        """Return config files and options of an arm. The control gets no options that its config files do not have."""
        files, options = self.files, self.options
        if arm == "control" and not self.is_control:
            files, own = self.control_files, read_mapping(CONTROL)
            accepted = accepted_options([*files, str(CONFIGS / "evaluate.yaml")], options)
            options = {key: value for key, value in accepted.items() if key not in own}
        words = ["--config_file", str([*files, str(CONFIGS / "evaluate.yaml")])]
        return words + [word for key, value in options.items() for word in (f"--{key}", value) if word]

    def settings(self) -> dict[str, Any]:
        """Return what determines the results of the folds: the content of the config files, and the options."""
        return {
            "configs": [read_mapping(file) for file in self.files],
            "options": {key: value for key, value in self.options.items() if key not in WITHOUT_EFFECT},
        }


def _is_method(file: str) -> bool:
    """Whether a config file replaces loss terms, as the files of `configs/methods` do, and describes no dataset."""
    keys = set(map(top_key, read_mapping(file)))
    return "terms" in keys and "dataset_dir" not in keys


def _run_fold(
    folder: Path,
    arm: str,
    datalist: Mapping[str, Any],
    command: _Command,
    options: Sequence[str],
    cache_dir: str | Path | None,
    title: str,
) -> None:
    """Train one arm of one fold, and evaluate it with each option into `out_<index of the option>`."""
    write_text(folder / "dataset.json", json.dumps(datalist, indent=1) + "\n")
    words = [  # "$None", because with "None" the command would restart itself (scripts/cli/words.py)
        *command.words(arm),
        *("--datalist", str(folder / "dataset.json"), "--labelled_cases", str(len(datalist["training"]))),
        *("--validation_cases", "0", "--corrected_labels", "$None", "--ckpt_dir", str(folder / "models")),
        *([] if cache_dir is None else ["--cache_dir", str(Path(cache_dir).absolute())]),
    ]
    missing = [index for index in range(len(options)) if not (folder / f"out_{index}/metrics.csv").is_file()]
    if missing:
        print(f"{title}: training, output in {folder / 'log.txt'}", flush=True)
        _run("training", [*words, "--resume", "true", "--output_dir", str(folder / "out_0")], folder / "log.txt")
    for index in reversed(missing):  # plain evaluation last: its result marks a fold as finished
        more = options[index].split(" ", 1) if options[index] else []
        more += ["--report", "false", "--output_dir", str(folder / f"out_{index}")]
        _run("evaluating", [*words, *more], folder / "log.txt")


def _dice_of(out: Path, held_out: list[Case]) -> dict[str, dict[str, float]]:
    """Read the Dice by class and case of a finished evaluation."""
    name = _listed_names(out, held_out)
    return {
        of_class: {name[case]: value for case, value in values.items()} for of_class, values in read_dice(out).items()
    }


def _confidence_of(out: Path, held_out: list[Case]) -> dict[str, float]:
    """Read the mean confidence of each case, over the structures that have a Dice, of a finished evaluation."""
    of_case: dict[str, list[float]] = {}
    for row in csv_rows(out / "metrics.csv"):
        values = of_case.setdefault(row["case"], [])
        values += [float(row["confidence"])] if row.get("confidence") and row["dice"] else []
    name = _listed_names(out, held_out)
    return {name[case]: fmean(values) for case, values in of_case.items() if values}


def _listed_names(out: Path, held_out: list[Case]) -> dict[str, str]:
    """Map the names in an evaluation, which come from file names, to the names in the fold's datalist.

    Held-out cases of two folds may have the same file name.
    """
    evaluated = list(dict.fromkeys(row["case"] for row in csv_rows(out / "metrics.csv")))
    return dict(zip(evaluated, [case["case"] for case in held_out], strict=True))


def _run(run_id: str, words: Sequence[str], log: Path) -> None:
    with log.open("a", encoding="utf-8") as file:
        before = file.tell()
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, *words]
        code = run_process(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_bytes()[before:].decode("utf-8", errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("Error:")), f"it ended with code {code}.")
        raise UserError(f"`{run_id}` of a fold failed: {reason.removeprefix('Error: ')} Its output is in {log}.")


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Write the settings. If a fold already has a model or results, the settings must be the same as before."""
    path, text = directory / "settings.json", json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n"
    begun = any(any(directory.glob(f"fold_*/*/{file}")) for file in ("models/*.pt", "out_*/metrics.csv"))
    if begun and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{directory} holds a cross-validation of other options, config files or cases: remove that folder, or "
            "give another --output_dir."
        )
    write_text(path, text)
