# SPDX-License-Identifier: Apache-2.0
"""Find supposed images that are probably labels or copies, and labels that may be of different structures.

Without this check, copies of label files and predictions would be used as unlabelled images in training. A file that
no name marks as a label counts as an image. It is suspicious if it shares its name with a case, or if it holds only a
few different values, all of them integers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scripts.data.naming import (
    LABEL_WORDS,
    PART_WORDS,
    SEPARATOR,
    is_image_folder,
    is_part_folder,
    place_of,
    stem_of,
)
from scripts.dataset_setup.layouts import FoundCase
from scripts.errors import UserError
from scripts.files import file_digest

SHOWN = 10  # number of files named in a message
WAY_OUT = (
    "leave files out with --exclude PATTERN, give the folder of the labels with --labels, or take all as images with "
    "--keep_lookalikes"
)


def refuse_shared_names(cases: Sequence[FoundCase]) -> None:
    """Raise an error for unlabelled images that share their name with a case and are in a suspicious folder.

    A name may also begin with the name of the case, as in `case_01_prob`. A folder is suspicious if it is not a folder
    of images and the case is in one, or if it is a subfolder of the case's folder. Images of two sites may have the
    same names: both are then in folders called `images`, or in folders next to each other.

    Args:
        cases: cases with paths relative to the searched folder.

    Raises:
        UserError: names the images.
    """
    by_stem: dict[str, list[FoundCase]] = defaultdict(list)
    for case in cases:
        by_stem[stem_of(case.images[0])].append(case)
    found = []
    for case in cases:
        alike = [other for stem in beginnings(stem_of(case.images[0])) for other in by_stem.get(stem, ())[:SHOWN]]
        others = [other for other in alike if other is not case and _is_suspicious(case, other)]
        if case.label is None and others:
            found.append(f"{case.images[0]} (like {others[0].images[0]})")
    if found:
        raise UserError(
            f"{len(found)} supposed images share their name with a case and may be labels or predictions, "
            f"{shortened(found)}: {WAY_OUT}."
        )


def beginnings(stem: str) -> list[str]:
    """Return a name, and its beginnings up to each separator."""
    return [stem, *(stem[: match.start()] for match in re.finditer(SEPARATOR, stem))]


def _is_suspicious(case: FoundCase, other: FoundCase) -> bool:
    if _in_image_folder(other) and not _in_image_folder(case):
        return True
    place, above = place_of(case.images[0]), place_of(other.images[0])
    return len(above) < len(place) and place[: len(above)] == above and not _in_image_folder(case)


def _in_image_folder(case: FoundCase) -> bool:
    folders = case.images[0].split("/")[:-1]
    return any(is_image_folder(folder) or is_part_folder(folder) for folder in folders)


def copies(cases: Sequence[FoundCase]) -> list[str]:
    """Return a note if unlabelled images are copies, byte by byte, of the image of another case.

    Folders of DICOM files are not compared.

    Args:
        cases: cases with absolute paths.
    """
    by_glimpse: dict[tuple[int, bytes], list[tuple[str, FoundCase]]] = defaultdict(list)
    for case in cases:
        for path in case.images:
            if Path(path).is_file():
                by_glimpse[_glimpse(path)].append((path, case))
    by_content: dict[str | None, list[tuple[str, FoundCase]]] = defaultdict(list)
    for same in by_glimpse.values():
        for path, case in same if len(same) > 1 else ():
            by_content[file_digest(path)].append((path, case))
    found = []
    for alike in by_content.values():
        alike.sort(key=lambda each: each[1].label is None)  # of two files, that of a labelled case is the original
        original, of_original = alike[0]
        found += [f"{path} (of {original})" for path, case in alike[1:] if case.label is None and case != of_original]
    if not found:
        return []
    return [
        f"{len(found)} unlabelled images are copies of images of other cases, which may be test cases: "
        f"{shortened(found)}. Leave them out with --exclude PATTERN."
    ]


def _glimpse(path: str) -> tuple[int, bytes]:
    """Return the size of a file and a piece from its middle, so that few files are read as a whole."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        file.seek(size // 2)
        return size, file.read(2**16)


def different_labels(cases: Sequence[FoundCase]) -> list[str]:
    """Return a note if the label files of different cases may show different structures, by their names.

    What a name says besides the case is the name of the file (`liver` in `c1/liver.nii.gz`, `c1_liver_seg.nii.gz`), or
    the folder (`labels_liver/c1.nii.gz`, `labels/liver/c1.nii.gz`). Names that each case has for itself say nothing.

    Args:
        cases: cases with absolute paths.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if case.label is not None:
            kinds[_kind_of_label(case)].append(case.label)
    one_each = len(kinds) > 1 + max(map(len, kinds.values()), default=0)
    if len(kinds) < 2 or one_each or any(re.search(r"\d", kind) for kind in kinds):  # digits count cases or raters
        return []
    shown = ", ".join(f"{kind or 'no word'}: {len(files)} cases" for kind, files in sorted(kinds.items()))
    return [
        f"The label files have different names ({shown}), but a value counts as the same structure in all of them. If "
        "these are different structures, give each a value of its own."
    ]


def _kind_of_label(case: FoundCase) -> str:
    """Return the words of a label's path that are neither those of its case nor mark a label, in lower case."""
    assert case.label is not None
    image, folders = case.images[0], case.label.split("/")[:-1]
    own = set(re.split(SEPARATOR, f"{stem_of(image)}_{case.name}".lower()))
    marks = {*LABEL_WORDS, *PART_WORDS, *(label + part for label in LABEL_WORDS for part in PART_WORDS), ""}
    texts = [stem_of(case.label), *(folder for folder in folders if folder not in image.split("/"))]
    words = [word for text in texts if not is_part_folder(text) for word in re.split(SEPARATOR, text.lower())]
    return " ".join(word for word in words if word not in own | marks)


def refuse_label_like(paths: Sequence[str]) -> None:
    """Raise an error for supposed images that hold only a few whole numbers.

    Args:
        paths: the images that were found to look like labels.

    Raises:
        UserError: if there are any.
    """
    if paths:
        raise UserError(
            f"{len(paths)} supposed images hold only a few whole numbers, as labels do, {shortened(paths)}: {WAY_OUT}."
        )


def shortened(names: Sequence[str]) -> str:
    """List the first names, and the number of others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
