# SPDX-License-Identifier: Apache-2.0
"""Label files that no case of the datalist names, by the names of files alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from scripts.data.checks.finding import Finding, Kind
from scripts.data.folder_files import split_roles
from scripts.data.volumes import ending_of


def labels_alone(images: Iterable[str], labels: Iterable[str]) -> list[Finding]:
    """Files beside the datalist's labels that belong to none of its cases.

    Args:
        images: every image that the datalist names.
        labels: every label that it names, those of unlabelled cases too. No file is opened.
    """
    images, labels = ({os.path.normpath(path) for path in paths} for paths in (images, labels))
    folders_of_images = {str(Path(path).parent) for path in images}
    findings = []
    for folder in sorted({str(Path(path).parent) for path in labels}):
        files = [name for name in _files(folder) if os.path.join(folder, name) not in images | labels]
        if folder in folders_of_images:  # then names say which of the others are labels
            files = split_roles(files)[1]
        for name in files:
            path = os.path.join(folder, name)
            sentence = (
                f"{path} lies among the labels, but no case of the datalist names it: list it with its image, or take "
                "it away."
            )
            findings.append(Finding(Kind.LABEL_ALONE, sentence, path))
    return findings


def _files(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # gone: its labels have a finding of their own
        return []
    return [name for name in names if not name.startswith(".") and ending_of(name)]
