# SPDX-License-Identifier: Apache-2.0
"""Check a dataset: read every case, print a table of findings and write it as CSV (`run check_data`)."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from scripts.data.checks.case import check_all_headers, check_voxels
from scripts.data.checks.cohort import Member, duplicates, labels_alone, patients_on_both_sides, unlike_the_rest
from scripts.data.checks.finding import Finding, Severity, in_order
from scripts.data.checks.labels import absent_classes, never_together
from scripts.data.corrected_labels import with_foreign_labels
from scripts.data.datalist import named_files, read_cases
from scripts.data.spec import CaseLists, DatasetSpec, cases_with_roles, images_of
from scripts.errors import UserError
from scripts.files import csv_text, write_text
from scripts.progress import Progress, progress_bar

SHOWN = {Severity.ERROR: 10, Severity.WARNING: 5, Severity.NOTE: 2}  # maximum lines printed per kind of finding
NARROWEST = 40  # minimum width of the last column, in characters


def table_of(findings: Sequence[Finding], folder: str, width: int | None = None) -> str:
    """Format the findings as a table to print.

    Args:
        findings: in display order, with findings of the same kind next to each other.
        folder: folder of the dataset; paths are shown relative to it.
        width: line width in characters (default: the width of the terminal).
    """
    if not findings:
        return "No problems found."
    rows = [("severity", "finding", "case", "what")]
    for _, group in groupby(findings, key=lambda finding: finding.kind):
        same = list(group)
        shown = SHOWN[same[0].severity]
        rows += [_row(finding, folder) for finding in same[:shown]]
        if len(same) > shown:
            rows.append(("", "", "", f"... and {len(same) - shown} more"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    left = sum(widths) + 2 * len(widths)
    width = width or shutil.get_terminal_size((120, 24)).columns
    lines = []
    for row in rows:
        start = "  ".join(f"{text:<{size}}" for text, size in zip(row[:3], widths, strict=True)) + "  "
        wrapped = textwrap.wrap(row[3], max(NARROWEST, width - left), break_long_words=False, break_on_hyphens=False)
        lines += [(start if number == 0 else " " * left) + text for number, text in enumerate(wrapped)]
    return "\n".join(["", *lines, ""])


def _row(finding: Finding, folder: str) -> tuple[str, str, str, str]:
    sentence = finding.sentence.replace(folder.rstrip("/") + "/", "")
    return finding.severity, finding.kind.title, finding.case, sentence


COLUMNS = ("severity", "finding", "role", "case", "file", "what")


def check_data(dataset: DatasetSpec, output_dir: str | Path, show: Callable[[str], None] = print) -> list[Finding]:
    """Check every file that a run would read, report all problems, and write `output_dir/check_data.csv`.

    The images of all cases are opened, and the labels of labelled, validation and test cases. Label files of unlabelled
    cases are not opened, except those in `foreign_labels`. Only one file's voxels are in memory at a time.

    Args:
        dataset: the dataset to check.
        output_dir: folder for the CSV file.
        show: function that prints a text.

    Returns:
        The findings, most severe first, if none of them is an error.

    Raises:
        UserError: if a finding is an error (raised after the table is printed and written), or if there is no datalist.
    """
    _ = dataset.values  # raises an error for contradictory settings before any file is read
    lists, findings = read_cases(dataset)
    lists, more = with_foreign_labels(lists, dataset.foreign_labels_dir)
    findings += more
    findings += labels_alone(*named_files(dataset.directory, dataset.datalist))
    show(_what_is_read(lists))
    findings += check_dataset(lists, dataset, progress_bar)
    findings = in_order(findings)
    path = Path(output_dir) / "check_data.csv"
    write_text(path, csv_of(findings))
    show(table_of(findings, str(dataset.directory)))
    counts = _counted(findings)
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        raise UserError(f"The dataset has problems that would harm training ({counts}); {path} says how to fix each.")
    show(f"{counts[0].upper()}{counts[1:]}; written to {path}.")
    return findings


def check_dataset(lists: CaseLists, dataset: DatasetSpec, progress: Progress) -> list[Finding]:
    """Check the files of a datalist.

    Args:
        lists: cases from `read_cases`; their files may be missing. Unlabelled cases may have a label that another
            program made.
        dataset: the properties that the files should have.
        progress: see `Progress`.
    """
    opened = check_all_headers(cases_with_roles(lists), dataset, progress)
    findings = [finding for case in opened for finding in case.findings]
    members = [Member(case.case["case"], case.role, case.image) for case in opened if case.image is not None]
    findings += unlike_the_rest(members) + patients_on_both_sides(members)
    contents, tallies, held = [], [], []
    first = {value: values[0] for values in dataset.all_values for value in values}
    unheld = {dataset.values[0], dataset.ignore_value}
    for case in progress(opened, "reading voxels"):
        voxels = check_voxels(case, dataset)
        findings += voxels.findings
        contents += voxels.contents
        tallies += [voxels.values] if case.role == "labelled" and voxels.values is not None else []
        if voxels.values is not None and case.role != "unlabelled":
            held.append({first.get(value, value) for value in voxels.values.whole} - unheld)
    findings += never_together(held, dict(zip(dataset.values, dataset.label_names, strict=True)))
    findings += duplicates(contents)
    findings += absent_classes(tallies, dataset) if tallies else []
    return findings


def csv_of(findings: Iterable[Finding]) -> str:
    """Format the findings as CSV: a header with `COLUMNS`, then one line per finding."""
    rows = [(each.severity, each.kind.title, each.role, each.case, each.file, each.sentence) for each in findings]
    return csv_text(COLUMNS, rows)


def _what_is_read(lists: CaseLists) -> str:
    cases = [case for case, _ in cases_with_roles(lists)]
    images = sum(len(images_of(case)) for case in cases)
    labels = sum("label" in case for case in cases)
    return (
        f"{len(lists.labelled)} labelled, {len(lists.unlabelled)} unlabelled, {len(lists.validation)} validation and "
        f"{len(lists.test)} test cases: {images} images and {labels} labels are read; label files of unlabelled cases "
        "are not opened."
    )


def _counted(findings: Sequence[Finding]) -> str:
    numbers = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    return ", ".join(f"{number} {severity}{'' if number == 1 else 's'}" for severity, number in numbers.items())
