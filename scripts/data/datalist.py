# SPDX-License-Identifier: Apache-2.0
"""Which cases there are, and which of them carry labels."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.data.volumes import ENDINGS, ending_of, exists
from scripts.errors import BundleError

logger = logging.getLogger("datalist")

Case = dict[str, Any]
"""`image`: path or list of channel paths; `label`: path, absent for an unlabelled case; `case`: its name."""


@dataclass
class CaseLists:
    """The cases of a run by role. Unlabelled cases have no `label` entry: their label file cannot be opened."""

    labelled: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    validation: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)


def load_cases(
    dataset_dir: str | Path,
    datalist: str = "dataset.json",
    labelled_cases: int | None = None,
    validation_cases: int = 0,
) -> CaseLists:
    """Read a datalist in the form of the Medical Segmentation Decathlon.

    `training` (cases with labels), and where present `unlabeled`, `validation` and `test`. A case is
    `{"image": path or list of channel paths, "label": path}`, or a path alone for an image without label. A case may
    have a name of its own under `case`; without one the first image's file names it.

    Args:
        dataset_dir: folder that relative paths start from.
        datalist: the file, relative to `dataset_dir` or absolute.
        labelled_cases: the first so many of `training` are labelled, the rest are used as images only; `None` labels
            every case that has a label.
        validation_cases: so many of the labelled cases, the last ones, are held out for validation. They are taken out
            of training; cases under `validation` in the file come on top.

    Raises:
        BundleError: for a missing folder or file, a file that is no datalist, too few labelled cases, a validation case
            without label, an image in two roles, or files that do not exist.
    """
    root = Path(dataset_dir)
    _check_number("labelled_cases", 0 if labelled_cases is None else labelled_cases)
    _check_number("validation_cases", validation_cases)
    content = _read(root, datalist)
    training = [_case(entry, root, "training") for entry in content["training"]]
    count = sum("label" in case for case in training) if labelled_cases is None else labelled_cases
    if labelled_cases is None:
        training.sort(key=lambda case: "label" not in case)
        if count == 0:
            raise BundleError(f"No training case in {root / datalist} has a label: at least one must, to learn from.")
    if not 1 <= count <= len(training):
        raise BundleError(
            f"labelled_cases is {count}, but it must be from 1 to {len(training)}, the number of training cases in "
            f"{root / datalist}."
        )
    labelled, rest = training[:count], training[count:]
    without = [case["case"] for case in labelled if "label" not in case]
    if without:
        raise BundleError(
            f"labelled_cases is {count}, but case {without[0]} among the first {count} of {datalist} has no label. "
            "Put labelled cases first or lower labelled_cases."
        )
    if not 0 <= validation_cases < count:
        raise BundleError(
            f"validation_cases is {validation_cases}, but at least one of {count} labelled cases must train."
        )
    held_out = labelled[count - validation_cases :]
    lists = CaseLists(
        labelled=labelled[: count - validation_cases],
        unlabelled=[_without_label(c) for c in rest + [_case(e, root, "unlabeled") for e in content["unlabeled"]]],
        validation=held_out + [_case(e, root, "validation") for e in content["validation"]],
        test=[_case(e, root, "test") for e in content["test"]],
    )
    without = [case["case"] for case in lists.validation if "label" not in case]
    if without:
        raise BundleError(
            f"The validation case {without[0]} in {root / datalist} has no label to compare with: give it one, or "
            "move it to the list `unlabeled`."
        )
    _check_roles(lists)
    _check_files(lists)
    logger.info(
        f"{len(lists.labelled)} labelled and {len(lists.unlabelled)} unlabelled cases for training, "
        f"{len(lists.validation)} for validation, {len(lists.test)} for testing."
    )
    return lists


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BundleError(f"{name} must be a whole number, got {value!r}.")


def _read(root: Path, datalist: str) -> dict[str, Any]:
    if not root.is_dir():
        raise BundleError(f"The folder {root} (dataset_dir) does not exist. Give the data's folder by --dataset_dir.")
    path = root / datalist
    if not path.is_file():
        raise BundleError(
            f"{path} does not exist. It lists the cases in Medical Segmentation Decathlon form; docs/data.md shows one."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        raise BundleError(f"{path} has no list `training`. docs/data.md shows the form.")
    if not content["training"]:
        raise BundleError(f"The list `training` in {path} is empty: at least one labelled case is needed.")
    for section in ("unlabeled", "validation", "test"):
        if not isinstance(content.setdefault(section, []), list):
            raise BundleError(f"`{section}` in {path} must be a list of cases. docs/data.md shows the form.")
    return content


def _case(entry: Any, root: Path, section: str) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not entry.get("image"):
        raise BundleError(f"An entry of `{section}` has no `image`: {entry!r}. docs/data.md shows the form.")
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if not all(isinstance(path, str) for path in [*images, entry.get("label") or ""]):
        raise BundleError(f"A path in `{section}` is no text: {entry!r}. docs/data.md shows the form.")
    paths = [_inside(root, image) for image in images]
    case: Case = {
        "image": paths if isinstance(entry["image"], list) else paths[0],
        "case": str(entry.get("case") or case_name(paths[0])),
    }
    if entry.get("label"):
        case["label"] = _inside(root, entry["label"])
    return case


def _inside(root: Path, path: str) -> str:
    """An absolute path is the user's own word; a relative one must stay inside the data's folder."""
    full = root / path
    if not Path(path).is_absolute() and ".." in Path(path).parts:
        raise BundleError(f"The path {path} in the datalist leaves {root}. Write it absolute if that is meant.")
    return str(full)


def case_name(path: str | Path) -> str:
    """File name without an image's ending: `a.b/la_000.nii.gz` to `la_000`; the name of a DICOM folder as it is."""
    return Path(path).name[: -len(ending_of(path) or "") or None]


def _without_label(case: Case) -> Case:
    return {key: value for key, value in case.items() if key != "label"}


def _check_files(lists: CaseLists) -> None:
    for case in lists.labelled + lists.unlabelled + lists.validation + lists.test:
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        for path in [*images, *([case["label"]] if "label" in case else [])]:
            if not exists(path):
                raise BundleError(f"{path}, named by the datalist, does not exist: correct the path or --dataset_dir.")
        if "label" in case and Path(case["label"]).is_dir():
            raise BundleError(
                f"{case['label']}, a label in the datalist, is a folder: labels are files ({', '.join(ENDINGS)})."
            )


def _check_roles(lists: CaseLists) -> None:
    """An image that trains must not be evaluated on, and none may be labelled and unlabelled at once."""
    role_of: dict[str, str] = {}
    for role in ("labelled", "unlabelled", "validation", "test"):
        for case in getattr(lists, role):
            for path in case["image"] if isinstance(case["image"], list) else [case["image"]]:
                other = role_of.setdefault(os.path.normpath(path), role)
                if other != role:
                    raise BundleError(
                        f"{path} is a case of two kinds, {other} and {role}: keep it in one list of the "
                        "datalist, or lower labelled_cases."
                    )


def with_references(cases: list[Case], role: str) -> list[Case]:
    """Cases for evaluation: the label's path under `reference`, so that no preprocessing of labels touches it.

    Args:
        cases: of `load_cases`.
        role: what they are, for the message.

    Raises:
        BundleError: for no case, or one without a label.
    """
    if not cases:
        raise BundleError(f"The datalist names no {role} cases, so there is nothing to evaluate: add a list `{role}`.")
    without = [case["case"] for case in cases if "label" not in case]
    if without:
        raise BundleError(f"The {role} case {without[0]} has no label to compare with ({len(without)} such cases).")
    return [{**_without_label(case), "reference": case["label"]} for case in cases]
