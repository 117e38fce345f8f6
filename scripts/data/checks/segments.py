# SPDX-License-Identifier: Apache-2.0
"""Check the names that label files give to their values: 3D Slicer numbers segments in the order they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.data.checks.finding import Finding, Kind
from scripts.images.header import VolumeHeader


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def names_declared(label: VolumeHeader, names: Mapping[int, str]) -> list[Finding]:
    """Report a segment that has the name of another value's class; other names may differ, as classes may be renamed.

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
    """Report label files that give a name another value, or a value another name, than an earlier file.

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
    """The name of each value in the headers of label files that agree."""
    return {value: name for label in labels for value, name in label.segments.items()}
