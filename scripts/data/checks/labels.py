# SPDX-License-Identifier: Apache-2.0
"""What stands in label files, against what the dataset's YAML declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.data.checks.finding import Finding, Kind
from scripts.data.labels import MOST_VALUES, ROUNDING, Tally

MASK_OR_IGNORE = 255
SHOWN = 5  # wrong values named in a sentence


@dataclass(frozen=True)
class Classes:
    """What label files may hold.

    Attributes:
        names: of the classes, background first.
        values: the files' value for each class.
        ignore_value: value of voxels that count for nothing.
    """

    names: Sequence[str]
    values: Sequence[int]
    ignore_value: int | None = None

    @property
    def allowed(self) -> set[int]:
        """Every value that may occur."""
        return {*self.values} | ({self.ignore_value} - {None})


def values_of_label(path: str, values: Tally, classes: Classes) -> list[Finding]:
    """Findings about one label file.

    Args:
        path: of the file.
        values: counted in it.
        classes: what is declared.
    """
    if not values.complete:
        sentence = (
            f"The label {path} holds more than {MOST_VALUES} values and looks like an image: correct the datalist or "
            "the file."
        )
        return [Finding(Kind.NOT_WHOLE if values.other else Kind.UNDECLARED, sentence, path)]
    findings = []
    if values.other:
        sentence = (
            f"The label {path} holds {_listed(values.other)} in {values.other.total()} voxels, and a label must be a "
            "whole number: save it without interpolation."
        )
        findings.append(Finding(Kind.NOT_WHOLE, sentence, path))
    if values.rounded:
        sentence = (
            f"{values.rounded} voxels of the label {path} lie within {ROUNDING:g} of a whole number: they are rounded."
        )
        findings.append(Finding(Kind.ROUNDED, sentence, path))
    undeclared = sorted(set(values.whole) - classes.allowed)
    if MASK_OR_IGNORE in undeclared:
        undeclared.remove(MASK_OR_IGNORE)
        sentence = (
            f"The label {path} holds 255 in {values.whole[MASK_OR_IGNORE]} voxels, which some use for a mask and "
            "others for voxels to ignore: name it in label_values if it is a class, or write ignore_value: 255 in the "
            "dataset's YAML."
        )
        findings.append(Finding(Kind.MASK_OR_IGNORE, sentence, path))
    if undeclared:
        sentence = (
            f"The label {path} holds {_listed(undeclared)}, but the dataset's YAML declares "
            f"{_listed(sorted(classes.allowed), len(classes.allowed))}: declare it in label_names and label_values, or "
            "correct the file."
        )
        findings.append(Finding(Kind.UNDECLARED, sentence, path))
    if not values.other and set(values.whole) == {classes.ignore_value}:
        sentence = f"Every voxel of the label {path} has the ignore_value: use the case without its label."
        findings.append(Finding(Kind.ALL_IGNORED, sentence, path))
    elif not values.other and set(values.whole) <= {classes.values[0], classes.ignore_value}:
        sentence = f"The label {path} holds no structure at all: leave the case out if that is not meant."
        findings.append(Finding(Kind.EMPTY_LABEL, sentence, path))
    return findings


def absent_classes(tallies: Iterable[Tally], classes: Classes) -> list[Finding]:
    """Declared classes that no labelled case holds.

    Args:
        tallies: of the label files of the labelled cases.
        classes: what is declared.
    """
    found = {value for values in tallies for value in values.whole}
    return [
        Finding(
            Kind.ABSENT_CLASS,
            f"No labelled case holds the value {value} of the class {name!r}, so it cannot be learned: label more "
            "cases, or take the class out of label_names.",
        )
        for name, value in zip(classes.names, classes.values, strict=True)
        if value not in found
    ]


def _listed(values: Iterable[float], most: int = SHOWN) -> str:
    values = list(values)
    return ", ".join(f"{value:.6g}" for value in values[:most]) + (" and others" if len(values) > most else "")
