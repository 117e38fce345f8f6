# SPDX-License-Identifier: Apache-2.0
"""Images named one by one: a list, a text file with a path a line, or a JSON file of a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.errors import BundleError

ImageFiles = str | Sequence[str]
"""An image: its file or DICOM folder, or one for each channel."""

LIST_ENDINGS = (".txt", ".json")


def first_file(image: ImageFiles) -> str:
    """The file that an image is called after."""
    return image if isinstance(image, str) else image[0]


def listed_images(source: str | Path | Sequence[Any]) -> list[ImageFiles] | None:
    """The images of a list, in its order; `None` if `source` is no list and no file of one.

    Whether the files exist is not asked: one that does not must not keep the others from being segmented.

    Args:
        source: a list of paths, or of lists of paths for an image of several files; or a `.txt` file (a path a line,
            empty lines and those that begin with # left out) or a `.json` file (such a list), whose relative paths
            start from its own folder.

    Raises:
        BundleError: for a list file that is missing or holds something else.
    """
    if not isinstance(source, str | Path):
        return _checked(source, "dataset_dir", Path())
    file = Path(source).expanduser()
    if file.suffix.lower() not in LIST_ENDINGS or file.is_dir():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".txt":
            lines = [line.strip() for line in text.splitlines()]
            return _checked([line for line in lines if line and not line.startswith("#")], file, file.parent)
        return _checked(json.loads(text), file, file.parent)
    except FileNotFoundError as error:
        raise BundleError(f"{file} does not exist: correct the path of the list of images.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{file} cannot be read as a list of images ({error}): give a path a line.") from error


def _checked(entries: Any, name: str | Path, folder: Path) -> list[ImageFiles]:
    if not isinstance(entries, list | tuple):
        raise BundleError(f"{name} must be a list of images, got {type(entries).__name__}.")
    return [_image(entry, name, folder) for entry in entries]


def _image(entry: Any, name: str | Path, folder: Path) -> ImageFiles:
    files = [entry] if isinstance(entry, str | Path) else entry
    if not isinstance(files, list | tuple) or not files or not all(isinstance(file, str | Path) for file in files):
        raise BundleError(
            f"{name} must name each image by its path, or by a list of its channels' paths, got {entry!r}."
        )
    paths = [str(folder / Path(file).expanduser()) for file in files]
    return paths[0] if isinstance(entry, str | Path) else paths
