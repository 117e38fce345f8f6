# SPDX-License-Identifier: Apache-2.0
"""The image files below a folder, and which of them are labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scripts.data.naming import is_image_folder, is_label_folder, is_label_stem, stem_of
from scripts.data.volumes import ending_of


def find_images(folder: Path) -> list[str]:
    """Paths of image files and of DICOM series folders below `folder`, relative to it, in order.

    Hidden files and folders (`.git`, the `._name` files of other systems) are passed over; links are followed.
    """
    found: list[str] = []
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = sorted(name for name in files if not name.startswith("."))
        below = Path(top).relative_to(folder)
        images = [name for name in files if ending_of(name)]
        found += [(below / name).as_posix() for name in images]
        if any(is_dicom(Path(top) / name) for name in files if not ending_of(name)):
            found.append(below.as_posix())
    return sorted(found)


def is_dicom(file: Path) -> bool:
    """Whether a file's name or its first bytes say DICOM."""
    if file.suffix.lower() == ".dcm":
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:  # a link to nothing, a file of somebody else's
        return False


def split_roles(paths: Sequence[str], label_folder: str | None = None) -> tuple[list[str], list[str]]:
    """Images and labels among relative paths.

    Args:
        paths: of `find_images`.
        label_folder: relative to the same folder: what lies in it is a label and nothing else is. Without it, folders
            named `labels`, `masks` and the like say so; a file outside of folders with such a name is a label if a
            word in its own name says so.
    """
    if label_folder is not None:
        below = label_folder.rstrip("/") + "/"
        return [p for p in paths if not p.startswith(below)], [p for p in paths if p.startswith(below)]
    any_label_folder = any(_folder_role(path) == "label" for path in paths)
    labels = {path for path in paths if _is_label(path, any_label_folder)}
    return [p for p in paths if p not in labels], [p for p in paths if p in labels]


def _folder_role(path: str) -> str | None:
    for folder in reversed(path.split("/")[:-1]):
        if is_label_folder(folder):
            return "label"
        if is_image_folder(folder):
            return "image"
    return None


def _is_label(path: str, any_label_folder: bool) -> bool:
    role = _folder_role(path)
    if role == "label" or (role == "image" and any_label_folder):
        return role == "label"
    return is_label_stem(stem_of(path))
