# SPDX-License-Identifier: Apache-2.0
"""Find image files and DICOM series in folders and lists. All commands use these functions."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from scripts.errors import UserError
from scripts.files import read_text
from scripts.images.dicom_slices import drawn_structures, looks_like_slice, series_of, split_series
from scripts.images.header import NNUNET_CHANNEL, PAIR, case_name, ending_of
from scripts.images.read import exists, parts_of

logger = logging.getLogger("images")

ImageFiles = str | Sequence[str]
"""An image: one file or DICOM folder, or a list with one for each channel."""

LIST_ENDINGS = (".txt", ".json")
DETACHED = (".mhd", ".nhdr", ".seg.nhdr")
"""Endings of headers whose voxels are in a separate file."""

IN_PARTS = (*DETACHED, PAIR[0])
"""Endings of images that have other files of the same name; for Analyze, SPM also writes a `.mat` file."""


def first_file(image: ImageFiles) -> str:
    """Return the file that the image is named after."""
    return image if isinstance(image, str) else image[0]


def listed_images(source: str | Path | Sequence[Any]) -> list[ImageFiles] | None:
    """Return the images of a list in their order, or `None` if `source` is neither a list nor a list file.

    The files need not exist, so that a missing file does not prevent the segmentation of the others.

    Args:
        source: a list of paths, in which an image of several files is a list of paths; or a `.txt` file (one path per
            line; empty lines and lines that begin with # are ignored) or a `.json` file that contains such a list.
            Paths in a list file are relative to its folder.

    Raises:
        UserError: if a list file does not exist or is not a list of paths.
    """
    if not isinstance(source, str | Path):
        return _checked(source, "dataset_dir", Path())
    file = Path(source).expanduser()
    if file.suffix.lower() not in LIST_ENDINGS or file.is_dir():
        return None
    try:
        text = read_text(file)
        if file.suffix.lower() == ".txt":
            lines = [line.strip() for line in text.splitlines()]
            return _checked([line for line in lines if line and not line.startswith("#")], file, file.parent)
        return _checked(json.loads(text), file, file.parent)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: correct the path of the list of images.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as a list of images ({error}): write one path per line.") from error


def with_slashes(path: str, folder: Path) -> str:
    """Replace the backslashes of a path from a list that was written on Windows, unless the file has such a name."""
    return path if "\\" not in path or exists(folder / path) else path.replace("\\", "/")


def _checked(entries: Any, name: str | Path, folder: Path) -> list[ImageFiles]:
    if not isinstance(entries, list | tuple):
        raise UserError(f"{name} must be a list of images, got {type(entries).__name__}.")
    images = [_image(entry, name, folder) for entry in entries]
    once = list({str(image): image for image in images}.values())
    if len(once) < len(images):
        logger.warning(f"{name} lists {len(images) - len(once)} images more than once; each is used once.")
    return once


def _image(entry: Any, name: str | Path, folder: Path) -> ImageFiles:
    files = [entry] if isinstance(entry, str | Path) else entry
    if not isinstance(files, list | tuple) or not files or not all(isinstance(file, str | Path) for file in files):
        raise UserError(
            f"{name} must give each image as a path, or as a list with a path for each channel, got {entry!r}."
        )
    paths = [str(folder / Path(with_slashes(str(file), folder)).expanduser()) for file in files]
    return paths[0] if isinstance(entry, str | Path) else paths


def find_images(path: str | Path | Sequence[ImageFiles], pattern: str = "*") -> list[ImageFiles]:
    """Find the images in a folder and its subfolders, sorted by path, or in a list, in the order of the list.

    Args:
        path: a folder, an image file, a folder of DICOM slices or `FOLDER#SERIES_UID`; or a list of such files and
            series, or a `.txt` or `.json` file with such a list (`listed_images`). In a folder, image files of every
            format and folders of DICOM slices are found (`walk_images`).
        pattern: shell pattern (`imaging.nii.gz`) for the names of the files and folders found in `path`.

    Raises:
        UserError: if `path` does not exist, a list cannot be read, or the folder contains a broken link.
    """
    listed = listed_images(path)
    if listed is not None:
        return listed
    root = Path(str(path)).expanduser()
    if not exists(root):
        raise UserError(f"{path} does not exist: give a folder of images or one image with --dataset_dir.")
    if split_series(root)[1] is not None or not root.is_dir():
        return [str(root)]
    passed: list[Path] = []
    found = sorted(str(image) for image in walk_images(root, passed) if image == root or fnmatch(image.name, pattern))
    if passed:
        logger.warning(passed_over(passed, root))
    _warn_of_divided_series(found)
    return list[ImageFiles](found)


def _warn_of_divided_series(paths: Sequence[str]) -> None:
    folders: dict[str, list[str]] = {}
    for path in paths:
        if Path(path).is_dir():
            folders.setdefault(series_of(Path(path)), []).append(path)
    for series, held in folders.items():
        if series and len(held) > 1:
            logger.warning(
                f"{' and '.join(held)} hold slices of the same DICOM series, but each folder is read as a volume of "
                "its own: move slices of one volume to one folder."
            )


def grouped_channels(files: Sequence[str]) -> list[ImageFiles]:
    """Group `NAME_0000`, `NAME_0001`, ... (nnU-Net's notation) to one image, if all files have such names."""
    matches = [NNUNET_CHANNEL.fullmatch(case_name(file)) for file in files]
    groups: dict[tuple[str, str], list[str]] = {}
    for file, match in zip(files, matches, strict=True):
        if match is None:
            return list[ImageFiles](files)
        groups.setdefault((os.path.dirname(file), match[1]), []).append(file)
    return [group if len(group) > 1 else group[0] for group in groups.values()]


DOCUMENTS = (
    ".txt", ".json", ".csv", ".tsv", ".md", ".yaml", ".yml", ".xml", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls",
    ".xlsx", ".log", ".py", ".sh", ".ini", ".cfg", ".bval", ".bvec",
)  # fmt: skip
"""Endings of files that never hold an image; they are skipped without a warning."""


def passed_over(files: Sequence[Path], folder: Path) -> str:
    """Make a sentence that counts the skipped files by ending."""
    endings = Counter("".join(file.suffixes[-1 - (file.suffix == ".gz") :]).lower() or "no ending" for file in files)
    counted = ", ".join(f"{number} {ending}" for ending, number in endings.most_common())
    drawn = sum(drawn_structures(file) is not None for file in files)
    hint = (
        f" {drawn} of them hold DICOM structures (SEG, RTSTRUCT): convert these to NIfTI or NRRD labels."
        if drawn
        else ""
    )
    return f"{len(files)} files below {folder} have an unsupported format and are skipped: {counted}.{hint}"


def image_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split the files of one folder into image files and others; a .hdr file belongs to its .img file."""
    endings = {(file.stem, ending_of(file)) for file in files}
    images, others = [], []
    for file in files:
        ending = ending_of(file)
        partner = {".img": ".hdr", ".hdr": ".img"}.get(ending or "")
        if ending is not None and (partner is None or (file.stem, partner) in endings):
            images += [file] if ending != PAIR[1] else []
        else:
            others.append(file)
    return images, others


def _unreadable(others: Sequence[Path], images: Sequence[Path]) -> list[Path]:
    """Leave documents and the parts of images out of a list of files that are not images.

    Args:
        others: the files.
        images: images whose parts may be among them.
    """
    left = [file for file in others if file.suffix.lower() not in DOCUMENTS]
    in_parts = [image for image in images if left and ending_of(image) in IN_PARTS]
    stems: dict[Path, tuple[str, ...]] = {}
    named: set[Path] = set()
    for image in in_parts:
        stems[image.parent] = (*stems.get(image.parent, ()), f"{image.stem}.")
        with contextlib.suppress(OSError, UserError):  # an incomplete image is refused when it is read
            named |= {Path(os.path.normpath(image.parent / part)) for part in parts_of(image)}
    return [f for f in left if f not in named and not f.name.startswith(stems.get(f.parent, ()))]


def walk_images(folder: Path, passed: list[Path] | None = None) -> Iterator[Path]:
    """Yield the image files in a folder and its subfolders, and each folder that directly contains DICOM slices.

    Hidden files and folders (`.git`, the `._name` files of macOS) are skipped. Links are followed, but no folder is
    visited twice.

    Args:
        folder: the folder.
        passed: list to which files that are not images are added, except for documents and the data files of headers.
            In a folder with slices, only files of drawn structures are added.

    Raises:
        UserError: for a broken link with the name of an image, a folder that cannot be read, or a name that is not
            UTF-8.
    """
    others: list[Path] = []
    if passed is None:
        yield from _walk(folder, set(), others)
        return
    images: list[Path] = []
    for image in _walk(folder, set(), others):
        images.append(image)
        yield image
    passed += _unreadable(others, images)


def _walk(folder: Path, visited: set[str], passed: list[Path]) -> Iterator[Path]:
    visited.add(os.path.realpath(folder))
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}): check its permissions.") from error
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{folder} holds {os.fsencode(entry.name)!r}, a name that is not UTF-8: rename it."
            ) from error
    images, others = image_files([entry for entry in entries if entry.is_file()])
    yield from images
    for entry in entries:
        if entry.is_symlink() and ending_of(entry) is not None and not entry.exists():
            raise UserError(f"{entry} is a broken link: repair or remove it.")
    if _hold_slices(others):
        yield folder
        passed += filter(drawn_structures, others)
    else:
        passed += others
    for entry in entries:
        if entry.is_dir() and os.path.realpath(entry) not in visited:
            yield from _walk(entry, visited, passed)


def _hold_slices(files: Sequence[Path]) -> bool:
    for file in files:
        with contextlib.suppress(OSError):  # an unreadable file without the name of a slice
            if looks_like_slice(file):
                return True
    return False


def output_names(files: Sequence[str]) -> list[str]:
    """Return a unique name for each file.

    This is the file name without its ending. For files with the same name, the folders are prepended
    (`case_1/imaging.nii.gz` becomes `case_1_imaging`), then endings and finally numbers are added, until all names
    differ.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if files else ""
    relative = [os.path.relpath(file, root) for file in files]
    names = [case_name(file) for file in files]
    with_folders = [os.path.join(os.path.dirname(path), case_name(path)) for path in relative]
    for longer in (with_folders, relative):
        count = Counter(names)
        names = [new.replace(os.sep, "_") if count[name] > 1 else name for name, new in zip(names, longer, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index] in taken:
            names[index], number = f"{name}_{number}", number + 1
        taken.add(names[index])
    return names
