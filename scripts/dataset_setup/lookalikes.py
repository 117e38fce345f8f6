# SPDX-License-Identifier: Apache-2.0
"""Find supposed images that are probably labels.

Without this check, copies of label files and predictions would be used as unlabelled images in training. A file that
no name marks as a label counts as an image. It is suspicious if it shares its name with a case, or if it holds only a
few different values, all of them integers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from scripts.data.naming import SEPARATOR, is_image_folder, is_part_folder, place_of, stem_of
from scripts.dataset_setup.layouts import FoundCase
from scripts.errors import UserError

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
