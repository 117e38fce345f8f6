# SPDX-License-Identifier: Apache-2.0
"""Find the cases of a folder and split them into labelled, unlabelled, validation and test cases."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path

from scripts.data.checks.finding import Kind
from scripts.data.corrected_labels import PSEUDO, nnunet_pseudo_labels
from scripts.data.datalist import raise_first_error, read_cases, unknown_lists, with_section_names
from scripts.data.naming import TEST, TRAINING, VALIDATION, place_of, split_channel, split_roles, stem_of
from scripts.data.patients import patient_of, patients_of
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.layouts import Description, FoundCase, describe, pair, read_generated, read_mapping
from scripts.dataset_setup.lookalikes import beginnings, refuse_shared_names, shortened
from scripts.errors import UserError
from scripts.images.dicom_slices import split_series
from scripts.images.find import passed_over, walk_images
from scripts.images.header import ENDINGS
from scripts.images.read import exists


def number_of_tests(labelled: int, fraction: float) -> int:
    """Number of test cases: a fraction of the labelled cases, rounded down so that tiny datasets keep all labels.

    Raises:
        UserError: if the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(f"--test_fraction must be at least 0 and below 1, got {fraction}.")
    return math.floor(labelled * Fraction(str(fraction)))  # exact decimal arithmetic: 0.1 of 30 is 3


def choose_tests(names: Sequence[str], number: int, patient: str | Mapping[str, str] | None = None) -> set[str]:
    """Choose test cases by hashing their names.

    The cases with the lowest SHA-256 hashes are chosen. The choice looks random, but needs no seed, does not depend on
    the order of files, and seldom changes for existing cases when a case is added.

    Args:
        names: unique names of the labelled cases.
        number: number of test cases.
        patient: see `patient_of`. Cases of one patient stay together: whole patients are chosen until there are at
            least `number` cases.

    Raises:
        UserError: if no case would be left to train on.
    """
    if number < 0:
        raise UserError(f"--test_cases must be at least 0, got {number}.")
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(patient_of(name, patient), []).append(name)
    tests: set[str] = set()
    for group in sorted(groups, key=lambda key: hashlib.sha256(key.encode("utf-8")).hexdigest()):
        if len(tests) >= number:
            break
        tests.update(groups[group])
    if len(tests) >= len(names):
        raise UserError(
            f"The test split takes {len(tests)} of {len(names)} labelled cases and leaves none for training: lower "
            "--test_cases or --test_fraction."
        )
    return tests


DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Request:
    """Options of `python -m scripts new-dataset`; `--help` explains each."""

    folder: Path
    name: str
    labels: Path | None = None
    unlabelled: Path | None = None
    channels: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    keep_lookalikes: bool = False
    preset: str | None = None
    label_names: tuple[str, ...] | None = None
    ignore_value: int | None = None
    test_fraction: float | None = None
    test_cases: int | None = None
    patient_pattern: str | None = None
    use_test_images: bool = False
    output: Path | None = None
    config: Path | None = None
    copy_to: Path | None = None
    force: bool = False
    dry_run: bool = False


@dataclass
class Roles:
    """Cases by role, with absolute paths; `notes` are messages for the user about what was left out and why."""

    labelled: list[FoundCase] = field(default_factory=list)
    unlabelled: list[FoundCase] = field(default_factory=list)
    validation: list[FoundCase] = field(default_factory=list)
    test: list[FoundCase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[FoundCase]:
        """Every case that has a role."""
        return self.labelled + self.unlabelled + self.validation + self.test

    @property
    def with_label(self) -> list[FoundCase]:
        """Every case whose label file is read in training, validation or evaluation."""
        return self.labelled + self.validation + self.test


def gather(request: Request) -> tuple[list[FoundCase], Description, str]:
    """Return the cases of a folder with absolute paths, the description of the dataset, and the source of both.

    Raises:
        UserError: for a missing folder, a folder without images or labels, or names that cannot be paired.
    """
    folder = request.folder
    for path in filter(None, (folder, request.labels, request.unlabelled)):
        if not path.is_dir():
            raise UserError(f"The folder {path} does not exist." if not path.exists() else f"{path} is not a folder.")
    description, listed, notes = Description(), None, list[str]()
    file = folder / "dataset.json"
    if file.is_file() and not read_generated(file):
        content = read_mapping(file)
        description = describe(content)
        listed = _listed_cases(folder, content, notes)
    if listed is not None and request.labels is None:
        for option in ("channels", "unlabelled", "exclude"):
            if getattr(request, option):
                raise UserError(
                    f"{file} already lists the cases, so --{option} would do nothing: leave it out, or rename the file."
                )
        _count_unlisted(folder, listed, notes)
        return listed, replace(description, notes=(*description.notes, *notes)), "dataset.json"
    try:
        cases = _found_cases(request, notes)
        if not any(case.label for case in cases):
            raise UserError(
                f"No labels were found in {folder}, and at least one is needed: put labels into a folder `labels`, end "
                "their names in _seg, or give their folder with --labels."
            )
    except UserError as error:
        raise UserError(" ".join([str(error), *notes])) from error
    return cases, replace(description, notes=(*description.notes, *notes)), "names of files and folders"


def _listed_cases(folder: Path, content: dict, notes: list[str]) -> list[FoundCase] | None:
    """Return the cases of a datalist; `None` if it lists no cases (nnU-Net) or its first image does not exist.

    Labels of test cases are often listed but not published. A note mentions them, and the cases get no label.
    """
    if isinstance(content.get("dataset"), dict) and content["dataset"]:
        return _listed_by_nnunet(folder, content["dataset"])
    training = with_section_names(content, folder / "dataset.json").get("training")
    notes += [finding.sentence for finding in unknown_lists(content, folder / "dataset.json")]
    if not isinstance(training, list) or not training:
        return None
    first = training[0].get("image") if isinstance(training[0], dict) else training[0]
    if isinstance(first, str) and not (folder / first).exists() and (folder / "imagesTr").is_dir():
        notes.append(f"The lists of dataset.json are not used, because {first} does not exist.")
        return None
    lists, findings = read_cases(DatasetSpec(folder.absolute(), "dataset.json"))
    hidden = [each for each in findings if each.kind is Kind.MISSING_LABEL and each.role == "test"]
    raise_first_error([each for each in findings if each not in hidden])
    if hidden:
        notes.append(f"{len(hidden)} labels of test cases do not exist, such as {hidden[0].file}.")
    missing = {each.file for each in hidden}
    part_of = {"labelled": TRAINING, "unlabelled": TRAINING, "validation": VALIDATION, "test": TEST}
    cases = []
    for role, part in part_of.items():
        for case in getattr(lists, role):
            images = case["image"] if isinstance(case["image"], list) else [case["image"]]
            label = os.path.normpath(case["label"]) if "label" in case and case["label"] not in missing else None
            cases.append(FoundCase(case["case"], tuple(map(os.path.normpath, images)), label, part))
    return cases


def _listed_by_nnunet(folder: Path, listed: dict) -> list[FoundCase]:
    """Return the cases under `dataset`, which lets nnU-Net use files in any folder."""
    cases = []
    for name, entry in listed.items():
        if not (
            isinstance(entry, dict) and isinstance(entry.get("images"), list) and isinstance(entry.get("label"), str)
        ):
            raise UserError(f"The case {name} under `dataset` in {folder}/dataset.json must give `images` and `label`.")
        files = [os.path.normpath(folder.absolute() / path) for path in (*entry["images"], entry["label"])]
        for path in files:
            if not exists(path):
                raise UserError(f"{path}, named by the case {name} in dataset.json, does not exist: correct the path.")
        cases.append(FoundCase(name, tuple(files[:-1]), files[-1], TRAINING))
    return cases


def _count_unlisted(folder: Path, listed: Sequence[FoundCase], notes: list[str]) -> None:
    """Add a note about image files that no list of `dataset.json` names."""
    named = {path for case in listed for path in (*case.images, case.label) if path is not None}
    known = {os.path.realpath(split_series(path)[0]) for path in named}
    apart = {FOREIGN, PSEUDO, "corrected_labels"}
    left = [
        path
        for path in walk_images(folder)
        if os.path.realpath(path) not in known and not apart & set(path.relative_to(folder).parts)
    ]
    if left:
        notes.append(
            f"{len(left)} image files below {folder} are in no list of dataset.json and are not used, such as "
            f"{left[0].relative_to(folder)}; if you rename dataset.json, the cases are found by their names."
        )


def _found_cases(request: Request, notes: list[str]) -> list[FoundCase]:
    folder = request.folder.absolute()
    paths = _images_below(folder, request.exclude, notes)
    if not paths:
        held = "is empty" if not any(folder.iterdir()) else "contains no images"
        raise UserError(f"{folder} {held}: the supported inputs are {', '.join(ENDINGS)} files and DICOM folders.")
    inside, outside = _label_folder(request)
    images, labels = split_roles(paths, inside)
    if outside is not None:
        images = split_roles(paths)[0] or paths
        labels = [str(outside / path) for path in _images_below(outside, request.exclude, notes)]
    if request.unlabelled is not None:
        further = request.unlabelled.absolute()  # may be inside the dataset's folder; labels in it are not used
        images = [path for path in images if not (folder / path).is_relative_to(further)]
        labels = [path for path in labels if not (folder / path).is_relative_to(further)]
        told: list[str] = notes if not further.is_relative_to(folder) else []  # else they are counted already
        images += [str(further / path) for path in split_roles(_images_below(further, request.exclude, told))[0]]
    cases = pair(images, labels, request.channels)
    if request.channels:
        _count_other_channels(images, cases, request.channels, notes)
    if not request.keep_lookalikes:
        refuse_shared_names(cases)
    return [
        replace(
            case,
            images=tuple(str(folder / path) for path in case.images),
            label=None if case.label is None else str(folder / case.label),
        )
        for case in cases
    ]


def _count_other_channels(
    images: Sequence[str], cases: Sequence[FoundCase], channels: Sequence[str], notes: list[str]
) -> None:
    """Add a note about images that `--channels` leaves out, first those of cases that are left out as a whole."""
    used = {path for case in cases for path in case.images}
    found = set()
    for path in used:
        split = split_channel(stem_of(path), tuple(channels))
        found |= {(place_of(path), split[0])} if split else set()
    left = [path for path in images if path not in used]
    lost = [
        path for path in left if not any((place_of(path), name) in found for name in ["", *beginnings(stem_of(path))])
    ]
    if left:
        named = f"{len(lost)} of them belong to no case: {shortened(lost)}" if lost else shortened(left)
        notes.append(f"{len(left)} images are left out by --channels ({named}).")


FOREIGN = "foreign_labels"
"""Folder of labels from other programs (docs/labelling.md); its files are neither images nor labels to train on."""


def _images_below(folder: Path, exclude: Sequence[str], notes: list[str]) -> list[str]:
    """Return the relative paths of all images, except those whose path, file name or a folder name matches a pattern.

    Pseudo-labels are left out too. Notes give their number, and that of the files skipped because of their format.
    """
    passed: list[Path] = []
    paths = sorted(image.relative_to(folder).as_posix() for image in walk_images(folder, passed))
    if passed:
        notes.append(passed_over(passed, folder))
    patterns = [pattern.rstrip("/") for pattern in (*exclude, FOREIGN)]
    wanted = [
        path
        for path in paths
        if not any(fnmatch(name, pattern) for pattern in patterns for name in (path, *path.split("/")))
    ]
    predicted = [path for path in wanted if PSEUDO in path.split("/")[:-1]]
    if predicted:
        notes.append(
            f"{len(predicted)} files in folders named {PSEUDO} are not used, such as {predicted[0]}: to use a label, "
            "correct it and move it to corrected_labels."
        )
        wanted = [path for path in wanted if PSEUDO not in path.split("/")[:-1]]
    listed = nnunet_pseudo_labels([folder / path for path in wanted])
    if listed:
        notes.append(
            f"{len(listed)} labels are listed as `{PSEUDO}` in the dataset.json of their folder and are not used, such "
            f"as {min(listed).relative_to(folder)}: to use a label, correct it and remove its name from that list."
        )
    return [path for path in wanted if folder / path not in listed]


def _label_folder(request: Request) -> tuple[str | None, Path | None]:
    """Return the folder of labels: a relative path if it is inside the dataset's folder, else an absolute path."""
    if request.labels is None:
        return None, None
    labels, folder = request.labels.absolute(), request.folder.absolute()
    if folder.is_relative_to(labels):
        raise UserError(f"--labels {labels} also contains the images: give a folder that holds only labels.")
    if labels.is_relative_to(folder):
        return labels.relative_to(folder).as_posix(), None
    return None, labels


def assign(cases: Sequence[FoundCase], request: Request) -> Roles:
    """Give each case a role.

    Labelled cases below `imagesTs` or `test` become test cases. If there are none, some labelled cases are chosen.

    Raises:
        UserError: if no labelled case is left to train on.
    """
    roles = Roles(
        labelled=[case for case in cases if case.part == TRAINING and case.label],
        unlabelled=[case for case in cases if case.part == TRAINING and not case.label],
        validation=[case for case in cases if case.part == VALIDATION and case.label],
        test=[case for case in cases if case.part == TEST and case.label],
    )
    if not roles.labelled:
        raise UserError(
            f"No training case in {request.folder} has a label: at least one is needed outside of test and "
            "validation folders."
        )
    _place_bare_tests([case for case in cases if case.part != TRAINING and not case.label], roles, request)
    patients, sentence = patients_of([(case.name, case.images[0]) for case in roles.all], request.patient_pattern)
    roles.notes += [sentence] if sentence else []
    given = bool(roles.test)
    if not given or request.test_cases is not None or request.test_fraction is not None:
        _choose_tests(roles, request, patients)
    if given and request.patient_pattern is None:
        _name_patients_on_both_sides(roles, patients)
    else:
        _keep_patients_apart(roles, patients)
    return roles


def _place_bare_tests(bare: list[FoundCase], roles: Roles, request: Request) -> None:
    """Leave out test images without labels, unless the user wants to train on them."""
    if bare and request.use_test_images:
        roles.unlabelled += bare
    elif bare:
        roles.notes.append(
            f"{len(bare)} images in test or validation folders have no label and are left out; --use_test_images "
            "trains on them as unlabelled cases."
        )


def _choose_tests(roles: Roles, request: Request, patients: Mapping[str, str]) -> None:
    fraction = DEFAULT_TEST_FRACTION if request.test_fraction is None else request.test_fraction
    count = request.test_cases
    count = number_of_tests(len(roles.labelled), fraction) if count is None else count
    one_patient = len({patients[case.name] for case in roles.labelled}) == 1 < len(roles.labelled)
    if one_patient and request.test_cases is None and request.test_fraction is None:
        count = 0
    chosen = choose_tests([case.name for case in roles.labelled], count, patients)
    roles.test += [case for case in roles.labelled if case.name in chosen]
    roles.labelled = [case for case in roles.labelled if case.name not in chosen]
    if not roles.test:
        roles.notes.append(
            f"None of the {len(roles.labelled)} labelled cases is kept for testing, so the model cannot be evaluated; "
            + ("all are of one patient." if one_patient else "--test_cases 1 keeps one.")
        )


def _name_patients_on_both_sides(roles: Roles, patients: Mapping[str, str]) -> None:
    """Add a note about test patients with training cases. A guess does not change a split that came with the data."""
    tested = {patients[case.name] for case in roles.test}
    both = [case.name for case in roles.labelled + roles.unlabelled if patients[case.name] in tested]
    if both:
        roles.notes.append(
            f"{len(both)} training cases seem to be of patients with test cases ({', '.join(both[:5])}"
            f"{', ...' if both[5:] else ''}); --patient_pattern leaves such cases out."
        )


def _keep_patients_apart(roles: Roles, patients: Mapping[str, str]) -> None:
    """Remove all cases of test patients, labelled or not, from the other roles."""
    tested = {patients[case.name] for case in roles.test}
    for role in ("labelled", "unlabelled", "validation"):
        cases = getattr(roles, role)
        kept = [case for case in cases if patients[case.name] not in tested]
        if len(kept) < len(cases):
            roles.notes.append(f"{len(cases) - len(kept)} {role} cases of test patients are left out.")
        setattr(roles, role, kept)
