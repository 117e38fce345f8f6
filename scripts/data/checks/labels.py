# SPDX-License-Identifier: Apache-2.0
"""Check the values of label files, and the names that files give to them, against the dataset's YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

from scripts.data.checks.finding import Finding, Kind
from scripts.data.labels import MOST_VALUES, ROUNDING, Tally, value_text
from scripts.data.spec import DatasetSpec
from scripts.images.header import VolumeHeader

MASK_OR_IGNORE = 255
SHOWN = 5  # number of wrong values named in a message


def whole_numbers(path: str, values: Tally) -> list[Finding]:
    """Check that a label file has at most `MOST_VALUES` values and that all are whole numbers.

    Args:
        path: path of the label file.
        values: values of the file.
    """
    if not values.complete:
        sentence = (
            f"The label {path} has more than {MOST_VALUES} different values and looks like an image: remove it from "
            "the labels, or replace it."
        )
        return [Finding(Kind.NOT_WHOLE if values.other else Kind.UNDECLARED, sentence, path)]
    if values.other:
        sentence = (
            f"The label {path} has the value {_format(values.other)} in {values.other.total()} voxels, but labels must "
            "be whole numbers: resample it without interpolation, write 0 for NaN, or, if a slope in its header makes "
            "them of whole numbers, round them and save the file without a slope."
        )
        return [Finding(Kind.NOT_WHOLE, sentence, path)]
    return []


def values_of_label(path: str, values: Tally, dataset: DatasetSpec) -> list[Finding]:
    """Check the values of a label file.

    Args:
        path: path of the label file.
        values: values of the file.
        dataset: declares the classes.
    """
    findings = whole_numbers(path, values)
    if not values.complete:
        return findings
    if values.rounded:
        sentence = (
            f"The label {path} has {values.rounded} voxels within {ROUNDING:g} of a whole number; they are rounded."
        )
        findings.append(Finding(Kind.ROUNDED, sentence, path))
    background, *_ = classes = dataset.all_values
    allowed = {value for each in classes for value in each} | ({dataset.ignore_value} - {None})
    undeclared = sorted(set(values.whole) - allowed)
    if MASK_OR_IGNORE in undeclared:
        undeclared.remove(MASK_OR_IGNORE)
        sentence = (
            f"The label {path} has the value 255 in {values.whole[MASK_OR_IGNORE]} voxels, which may mean a mask or "
            "voxels to ignore: add it to label_values if it is a class, or write ignore_value: 255 in the dataset's "
            "YAML."
        )
        findings.append(Finding(Kind.MASK_OR_IGNORE, sentence, path))
    if undeclared:
        values_of_yaml = sorted(value for value in allowed if value is not None)
        sentence = (
            f"The label {path} has the value {_format(undeclared)}, but the dataset's YAML declares "
            f"{_format(values_of_yaml, len(values_of_yaml))}: declare it in label_names and label_values, or "
            "correct the file."
        )
        findings.append(Finding(Kind.UNDECLARED, sentence, path))
    if not values.other and set(values.whole) == {dataset.ignore_value}:
        sentence = f"Every voxel of the label {path} has the ignore_value: use the case without its label."
        findings.append(Finding(Kind.ALL_IGNORED, sentence, path))
    elif not values.other and set(values.whole) <= {*background, dataset.ignore_value}:
        sentence = f"The label {path} has no foreground: remove the case, unless this is intended."
        findings.append(Finding(Kind.EMPTY_LABEL, sentence, path))
    return findings


def absent_classes(tallies: Iterable[Tally], dataset: DatasetSpec) -> list[Finding]:
    """Report declared classes that occur in no labelled case.

    Args:
        tallies: values of the label files of the labelled cases.
        dataset: declares the classes.
    """
    found = {value for values in tallies for value in values.whole}
    return [
        Finding(
            Kind.ABSENT_CLASS,
            f"No labelled case has the value {' or '.join(map(str, each))} of the class {name!r}, so it cannot be "
            "learned: label more cases, or remove the class from label_names.",
        )
        for name, each in zip(dataset.label_names, dataset.all_values, strict=True)
        if not found.intersection(each)
    ]


def never_together(files: Sequence[Collection[int]], names: Mapping[int, str]) -> list[Finding]:
    """Report pairs of values that never occur in the same label file, because they may mean the same structure.

    Rare structures seldom occur together. A pair is therefore reported only if at least one file with both values would
    be expected by chance, or if every file with a structure holds one of the two.

    Args:
        files: the values of each label file without background and ignored voxels.
        names: names of the classes by value.
    """
    filled = [set(values) for values in files if values]
    count = Counter(value for values in filled for value in values)
    findings = []
    for one, other in combinations(sorted(count), 2):
        expected = count[one] * count[other] >= len(filled) or count[one] + count[other] == len(filled)
        if expected and not any({one, other} <= values for values in filled):
            of_one, of_other = (f"{value} ({names.get(value, '-')}, {count[value]} files)" for value in (one, other))
            sentence = (
                f"No label file holds both of the values {of_one} and {of_other}: if they are one structure, write one "
                "value in all files."
            )
            findings.append(Finding(Kind.NEVER_TOGETHER, sentence))
    return findings


def _format(values: Iterable[float], most: int = SHOWN) -> str:
    values = list(values)
    return ", ".join(map(value_text, values[:most])) + (" and others" if len(values) > most else "")


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def names_declared(label: VolumeHeader, names: Mapping[int, str]) -> list[Finding]:
    """Report a segment with the name of another value's class. Other differences are allowed (renamed classes).

    Args:
        label: header of a label file.
        names: name of each value that the dataset's YAML declares.
    """
    value_of = {_plain(name): value for value, name in names.items()}
    findings = []
    for value, name in label.segments.items():
        declared = value_of.get(_plain(name), value)
        if declared != value:
            sentence = (
                f"The label {label.path} has the value {value} for {name}, but the dataset's YAML declares {declared} "
                "for it: correct label_names and label_values, or write the file again with the declared values."
            )
            findings.append(Finding(Kind.SEGMENTS, sentence, label.path))
    return findings


def names_agree(labels: Sequence[VolumeHeader]) -> list[Finding]:
    """Report label files in which a name has another value, or a value another name, than in an earlier file.

    Args:
        labels: headers of label files.
    """
    named: dict[str, tuple[int, VolumeHeader]] = {}
    valued: dict[int, tuple[str, VolumeHeader]] = {}
    findings = []
    for label in labels:
        for value, name in label.segments.items():
            first_value, file_of_name = named.setdefault(_plain(name), (value, label))
            first_name, file_of_value = valued.setdefault(value, (name, label))
            if first_value != value:
                words = f"{name} has the value {value} in {label.path}, but {first_value} in {file_of_name.path}"
            elif _plain(first_name) != _plain(name):
                words = f"The value {value} is {name} in {label.path}, but {first_name} in {file_of_value.path}"
            else:
                continue
            sentence = f"{words}: write the label files with one value, and one name, for each structure."
            findings.append(Finding(Kind.SEGMENTS, sentence, label.path))
            break
    return findings


def names_of_segments(labels: Sequence[VolumeHeader]) -> dict[int, str]:
    """Return the name of each value, from the headers of label files that agree."""
    return {value: name for label in labels for value, name in label.segments.items()}
