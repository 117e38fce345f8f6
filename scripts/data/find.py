# SPDX-License-Identifier: Apache-2.0
"""The image files below a folder or in a list."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.data import FolderLayoutBase

from scripts.data.cases import case_name
from scripts.data.naming import is_image_folder, is_label_folder, is_label_stem, stem_of
from scripts.errors import UserError
from scripts.images.dicom_slices import looks_like_slice, split_series
from scripts.images.read import ending_of, exists


def find_volumes(folder: Path) -> list[str]:
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
        paths: of `find_volumes`.
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
        UserError: for a list file that is missing or holds something else.
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
        raise UserError(f"{file} does not exist: correct the path of the list of images.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as a list of images ({error}): give a path a line.") from error


def _checked(entries: Any, name: str | Path, folder: Path) -> list[ImageFiles]:
    if not isinstance(entries, list | tuple):
        raise UserError(f"{name} must be a list of images, got {type(entries).__name__}.")
    return [_image(entry, name, folder) for entry in entries]


def _image(entry: Any, name: str | Path, folder: Path) -> ImageFiles:
    files = [entry] if isinstance(entry, str | Path) else entry
    if not isinstance(files, list | tuple) or not files or not all(isinstance(file, str | Path) for file in files):
        raise UserError(f"{name} must name each image by its path, or by a list of its channels' paths, got {entry!r}.")
    paths = [str(folder / Path(file).expanduser()) for file in files]
    return paths[0] if isinstance(entry, str | Path) else paths


def find_images(path: str | Path | Sequence[ImageFiles], pattern: str = "*") -> list[ImageFiles]:
    """Images in a folder and the folders in it, in the order of their paths, or those of a list in its order.

    Args:
        path: a folder, an image file, a folder of DICOM slices or `FOLDER#SERIES_UID`; or a list of such files and
            series, or the `.txt` or `.json` file of one (`scripts.data.find`). In a folder, every file with the
            ending of an image counts, whichever format, and every folder that holds DICOM slices; hidden ones do not.
        pattern: of the names of those files and folders in `path`, as a shell has it (`imaging.nii.gz`).

    Raises:
        UserError: if `path` does not exist, a list is none, or a link in the folder leads to nothing.
    """
    listed = listed_images(path)
    if listed is not None:
        return listed
    root = Path(path).expanduser()
    if not exists(root):
        raise UserError(f"{path} does not exist: give a folder of images or one image by --dataset_dir.")
    if split_series(root)[1] is not None or not root.is_dir():
        return [str(root)]
    return sorted(str(image) for image in _walk(root, set()) if image == root or fnmatch(image.name, pattern))


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    """Follows links, each folder once: cases are often links to where the data lies."""
    visited.add(os.path.realpath(folder))
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and ending_of(entry) is not None and not _leads_somewhere(entry):
            raise UserError(f"{entry} is a link that leads to no file: mend it or remove it.")
    files = [entry for entry in entries if entry.is_file()]
    images = [file for file in files if ending_of(file) is not None]
    yield from images
    if any(looks_like_slice(file) for file in files if file not in set(images)):
        yield folder
    for entry in entries:
        if entry.is_dir() and os.path.realpath(entry) not in visited:
            yield from _walk(entry, visited)


def _leads_somewhere(link: Path) -> bool:
    try:
        return link.exists()
    except (OSError, RuntimeError):  # links in a circle
        return False


def output_names(files: Sequence[str]) -> list[str]:
    """A name for each file, no two the same.

    The file's name without ending. Files that share it are named with their folders (`case_1/imaging.nii.gz` becomes
    `case_1_imaging`), files that still share it with their endings too, and what is left is numbered.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if files else ""
    relative = [os.path.relpath(file, root) for file in files]
    names = [case_name(file) for file in files]
    without_ending = [os.path.join(os.path.dirname(path), case_name(path)) for path in relative]
    for longer in (without_ending, relative):
        count = Counter(names)
        names = [new.replace(os.sep, "_") if count[name] > 1 else name for name, new in zip(names, longer, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index] in taken:
            names[index], number = f"{name}_{number}", number + 1
        taken.add(names[index])
    return names


class OutputNames(FolderLayoutBase):
    """For MONAI's `SaveImaged(folder_layout=...)`: where the output for each of `images` goes.

    Args:
        images: of `find_images`; one of several files is known by its first. Or what returns them when the first output
            is named: a reader of bundles that builds the transforms and drops those that save has no folder of images.
        output_dir: made when the first output is written.
        postfix: behind the name.
        extension: of the written file.
    """

    def __init__(
        self,
        images: Sequence[ImageFiles] | Callable[[], Sequence[ImageFiles]],
        output_dir: str | Path,
        postfix: str = "_seg",
        extension: str = ".nii.gz",
    ) -> None:
        self.images, self.output_dir = images, Path(output_dir)
        self.ending = postfix + extension

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The output's path for each input."""
        images = self.images() if callable(self.images) else self.images
        files = [first_file(image) for image in images]
        names = zip(files, output_names(files), strict=True)
        return {file: self.output_dir / f"{name}{self.ending}" for file, name in names}

    def filename(self, subject: str, idx: int | None = None) -> str:
        """Path of the output.

        Args:
            subject: the input's path, `filename_or_obj` of its meta data.
            idx: number of a patch, which whole volumes do not have.

        Raises:
            KeyError: for a path that is not among `images`.
        """
        path = self.paths[subject]
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)
