# SPDX-License-Identifier: Apache-2.0
"""Read a datalist: the cases of a dataset, and which of them are labelled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.checks.cohort import missing_files, missing_labels, shared_labels, two_lists
from scripts.data.checks.finding import Finding, Kind
from scripts.data.corrected_labels import unique_names, with_corrected_labels
from scripts.data.spec import Case, CaseLists, DatasetSpec, images_of
from scripts.errors import UserError
from scripts.files import read_json
from scripts.images.find import with_slashes
from scripts.images.header import case_name, ending_of

logger = logging.getLogger("datalist")

SECTIONS = ("training", "unlabeled", "validation", "test")
"""The lists of a datalist."""

ALIASES = {"train": "training", "unlabelled": "unlabeled", "val": "validation", "testing": "test"}
"""Other names of these lists."""


def load_cases(dataset: DatasetSpec) -> CaseLists:
    """Read a datalist in the form of the Medical Segmentation Decathlon.

    Its lists are `training` (cases with labels) and, optionally, `unlabeled`, `validation` and `test`. A case is
    `{"image": path or list of channel paths, "label": path}`, or only a path for an image without label. The key `case`
    may give the name of a case; by default it is derived from the first image file.

    The first `labelled_cases` of `training` are labelled, and cases with corrected labels are added to them. The last
    `validation_cases` of the labelled cases are held out, in addition to the cases under `validation`.

    Args:
        dataset: where the datalist is, and how many of its cases are labelled and held out.

    Raises:
        UserError: for a missing folder or file, a file that is not a datalist, too few labelled cases, a validation
            case without label, an image in two roles, or files that do not exist.
    """
    lists, findings = read_cases(dataset)
    raise_first_error(findings)
    for finding in findings:
        if finding.kind in (Kind.UNKNOWN_LIST, Kind.LABEL_LEAK):
            logger.warning(finding.sentence)
    logger.info(
        f"{len(lists.labelled)} labelled and {len(lists.unlabelled)} unlabelled cases for training, "
        f"{len(lists.validation)} for validation, {len(lists.test)} for testing."
    )
    return lists


def raise_first_error(findings: Sequence[Finding]) -> None:
    """Raise the first error among the findings as a `UserError` that also gives the number of other errors."""
    errors = [finding.sentence for finding in findings if finding.is_error]
    if errors:
        others = f" ({len(errors) - 1} more mistakes in the datalist)" if errors[1:] else ""
        raise UserError(errors[0].rstrip(".") + others + ".")


def load_cases_if_usable(dataset: DatasetSpec) -> CaseLists:
    """As `load_cases`, but silently, and without cases if it fails. The report of an evaluation can do without them."""
    try:
        lists, findings = read_cases(dataset)
        raise_first_error(findings)
    except UserError:
        return CaseLists()
    return lists


def load_cases_if_listed(dataset: DatasetSpec) -> CaseLists:
    """As `load_cases`, but return no cases if the datalist does not exist, for programs that supply their own cases.

    Raises:
        UserError: as `load_cases`, except for a datalist that does not exist.
    """
    path = Path(dataset.directory) / dataset.datalist
    if path.is_file():
        return load_cases(dataset)
    logger.warning(f"{path} does not exist: this run uses only the cases that it is given.")
    return CaseLists()


def read_cases(dataset: DatasetSpec) -> tuple[CaseLists, list[Finding]]:
    """As `load_cases`, but continue after a mistake and return all mistakes.

    Args:
        dataset: see `load_cases`. Numbers of cases that are out of range are replaced by the nearest possible ones.

    Returns:
        The lists and the findings. Files in the lists may be missing, and labelled, validation and test cases may have
        no `label`.

    Raises:
        UserError: for a missing folder or file, a file that is not a datalist, or numbers of cases that are not
            integers.
    """
    root, labelled_cases, validation_cases = Path(dataset.directory), dataset.labelled_cases, dataset.validation_cases
    _check_number("labelled_cases", 0 if labelled_cases is None else labelled_cases)
    _check_number("validation_cases", validation_cases)
    content = read_datalist(root, dataset.datalist)
    findings = unknown_lists(content, root / dataset.datalist)
    sections = {name: _cases(content[name], root, name, findings) for name in SECTIONS}
    known = [case for name in SECTIONS if name != "test" for case in sections[name]]
    for case, unique in zip(known, unique_names(known), strict=True):
        case["case"] = unique
    training = sections["training"]
    if labelled_cases is None:
        training.sort(key=lambda case: "label" not in case)
        count = sum("label" in case for case in training)
    else:
        count = min(max(labelled_cases, 1), len(training))
    findings += _number_mistakes(root / dataset.datalist, training, labelled_cases, validation_cases, count)
    held_out = min(max(validation_cases, 0), max(count - 1, 0))
    labelled, rest = training[:count], training[count:]
    lists = CaseLists(
        labelled=labelled[: count - held_out],
        unlabelled=[_without_label(case) for case in rest + sections["unlabeled"]],
        validation=labelled[count - held_out :] + sections["validation"],
        test=sections["test"],
    )
    if dataset.corrected_labels_dir is not None:
        lists, mistakes = with_corrected_labels(lists, dataset.corrected_labels_dir)
        findings += mistakes
    findings += missing_labels(lists, root / dataset.datalist)
    findings += two_lists(lists) + shared_labels(lists)
    findings += missing_files(lists)
    return lists, findings


def load_test_cases(dataset: DatasetSpec) -> list[Case]:
    """Read the cases under `test`. Other lists may be absent; `labelled_cases` and `validation_cases` are ignored.

    Args:
        dataset: where the datalist is.

    Raises:
        UserError: for a missing folder or file, a file that is not a datalist, a test image that is also in another
            list, or a file of a test case that does not exist.
    """
    root = Path(dataset.directory)
    content = read_datalist(root, dataset.datalist, for_training=False)
    findings: list[Finding] = []
    test = _cases(content["test"], root, "test", findings)
    training, unlabelled, validation = (_cases(content[name], root, name, []) for name in SECTIONS[:-1])
    lists = CaseLists(training, unlabelled, validation, test)
    findings += [finding for finding in two_lists(lists) if finding.role == "test"]
    findings += missing_files(CaseLists(test=test))
    raise_first_error(findings)
    logger.info(f"{len(test)} cases for testing.")
    return test


def named_files(dataset_dir: str | Path, datalist: str = "dataset.json") -> tuple[list[str], list[str]]:
    """Return the paths of all images and of all labels in a datalist, including labels that are not used.

    Raises:
        UserError: for a missing folder or file, or a file that is not a datalist.
    """
    content = read_datalist(Path(dataset_dir), datalist)
    cases = [case for name in SECTIONS for case in _cases(content[name], Path(dataset_dir), name, [])]
    return [path for case in cases for path in images_of(case)], [c["label"] for c in cases if "label" in c]


def _cases(entries: list[Any], root: Path, section: str, findings: list[Finding]) -> list[Case]:
    cases = []
    for entry in entries:
        try:
            cases.append(_case(entry, root, section))
        except UserError as error:
            findings.append(Finding(Kind.BAD_ENTRY, str(error)))
    return cases


def _number_mistakes(
    path: Path, training: list[Case], labelled_cases: int | None, validation_cases: int, count: int
) -> list[Finding]:
    findings = []
    if labelled_cases is None and count == 0:
        sentence = f"No training case in {path} has a label: at least one must, to learn from."
        findings.append(Finding(Kind.SETTING, sentence))
    if labelled_cases is not None and not 1 <= labelled_cases <= len(training):
        sentence = (
            f"labelled_cases is {labelled_cases}, but it must be from 1 to {len(training)}, the number of training "
            f"cases in {path}."
        )
        findings.append(Finding(Kind.SETTING, sentence))
    if validation_cases != 0 and not 0 <= validation_cases < count:
        sentence = f"validation_cases is {validation_cases}, but at least one of {count} labelled cases must train."
        findings.append(Finding(Kind.SETTING, sentence))
    return findings


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, got {value!r}.")


def read_datalist(root: Path, datalist: str, for_training: bool = True) -> dict[str, Any]:
    """Read the content of a datalist; each of `SECTIONS` is a list in the result, also if it has one of `ALIASES`.

    Args:
        root: folder of the data.
        datalist: path of the file, relative to `root`.
        for_training: whether `training` must list at least one case.

    Raises:
        UserError: for a missing folder or file, or a file that is not a datalist.
    """
    if not root.is_dir():
        raise UserError(f"The folder {root} (dataset_dir) does not exist. Set --dataset_dir to the folder of the data.")
    path = root / datalist
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. It lists the cases in Medical Segmentation Decathlon form; docs/data.md shows one."
        )
    content = with_section_names(read_json(path), path)
    if not isinstance(content, dict) or (for_training and not isinstance(content.get("training"), list)):
        unknown = unknown_lists(content, path) if isinstance(content, dict) else []
        raise UserError(
            " ".join(
                [f"{path} has no list `training`. docs/data.md shows the form.", *(each.sentence for each in unknown)]
            )
        )
    if for_training and not content["training"]:
        raise UserError(f"The list `training` in {path} is empty: at least one labelled case is needed.")
    for section in SECTIONS:
        if not isinstance(content.setdefault(section, []), list):
            raise UserError(f"`{section}` in {path} must be a list of cases. docs/data.md shows the form.")
    return content


def with_section_names(content: Any, path: Path) -> Any:
    """Return the content of a datalist with the names of `SECTIONS` for lists that have one of `ALIASES`.

    Raises:
        UserError: if a list has two names.
    """
    if not isinstance(content, dict):
        return content
    for alias, section in ALIASES.items():
        if alias in content and content.get(section):
            raise UserError(f"{path} has both `{alias}` and `{section}`, which are the same list: join them.")
    renamed = {section: content[alias] for alias, section in ALIASES.items() if alias in content}
    return {key: value for key, value in content.items() if key not in ALIASES} | renamed


def unknown_lists(content: Mapping[str, Any], path: Path) -> list[Finding]:
    """Report lists of cases in a datalist whose names are not among `SECTIONS` and `ALIASES`.

    Args:
        content: content of the datalist.
        path: path of the datalist, for the messages.
    """
    unknown = [
        name
        for name, entries in content.items()
        if name not in (*SECTIONS, *ALIASES) and isinstance(entries, list) and any(map(_names_an_image, entries))
    ]
    return [
        Finding(
            Kind.UNKNOWN_LIST,
            f"`{name}` in {path} lists cases, but is not used: the lists are called {', '.join(SECTIONS)}.",
        )
        for name in unknown
    ]


def _names_an_image(entry: Any) -> bool:
    return "image" in entry if isinstance(entry, dict) else isinstance(entry, str) and ending_of(entry) is not None


def _case(entry: Any, root: Path, section: str) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not entry.get("image"):
        raise UserError(f"An entry of `{section}` has no `image`: {entry!r}. docs/data.md shows the form.")
    images = images_of(entry)
    if not all(isinstance(path, str) for path in [*images, entry.get("label") or ""]):
        raise UserError(f"A path in `{section}` is not a string: {entry!r}. docs/data.md shows the form.")
    paths = [_inside(root, image) for image in images]
    case: Case = {
        "image": paths if isinstance(entry["image"], list) else paths[0],
        "case": str(entry.get("case") or case_name(paths[0])),
    }
    if entry.get("label"):
        case["label"] = _inside(root, entry["label"])
    return case


def _inside(root: Path, path: str) -> str:
    """Make a path absolute. A relative path must not leave the data folder."""
    path = with_slashes(path, root)
    full = root / path
    if not Path(path).is_absolute() and ".." in Path(path).parts:
        raise UserError(f"The path {path} in the datalist leaves {root}. If that is intended, write an absolute path.")
    return str(full)


def _without_label(case: Case) -> Case:
    return {key: value for key, value in case.items() if key != "label"}


def with_references(cases: list[Case], role: str) -> list[Case]:
    """Return cases for evaluation, with the label's path under `reference`, so that label transforms skip it.

    Args:
        cases: cases from `load_cases`.
        role: their role, for the error message.

    Raises:
        UserError: if there is no case, or a case has no label.
    """
    if not cases:
        raise UserError(f"The datalist names no {role} cases, so there is nothing to evaluate: add a list `{role}`.")
    without = [case["case"] for case in cases if "label" not in case]
    if without:
        raise UserError(f"The {role} case {without[0]} has no label to compare with ({len(without)} such cases).")
    return [{**_without_label(case), "reference": case["label"]} for case in cases]
