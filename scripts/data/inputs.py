# SPDX-License-Identifier: Apache-2.0
"""What inference runs on, and what its outputs are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from monai.data import FolderLayoutBase

from scripts.data.cases import case_name
from scripts.data.dicom_slices import looks_like_slice, split_series
from scripts.data.image_lists import ImageFiles, first_file, listed_images
from scripts.data.volumes import ending_of, exists
from scripts.errors import BundleError


def find_images(path: str | Path | Sequence[ImageFiles], pattern: str = "*") -> list[ImageFiles]:
    """Images in a folder and the folders in it, in the order of their paths, or those of a list in its order.

    Args:
        path: a folder, an image file, a folder of DICOM slices or `FOLDER#SERIES_UID`; or a list of such files and
            series, or the `.txt` or `.json` file of one (`scripts.data.image_lists`). In a folder, every file with the
            ending of an image counts, whichever format, and every folder that holds DICOM slices; hidden ones do not.
        pattern: of the names of those files and folders in `path`, as a shell has it (`imaging.nii.gz`).

    Raises:
        BundleError: if `path` does not exist, a list is none, or a link in the folder leads to nothing.
    """
    listed = listed_images(path)
    if listed is not None:
        return listed
    root = Path(path).expanduser()
    if not exists(root):
        raise BundleError(f"{path} does not exist: give a folder of images or one image by --dataset_dir.")
    if split_series(root)[1] is not None or not root.is_dir():
        return [str(root)]
    return sorted(str(image) for image in _walk(root, set()) if image == root or fnmatch(image.name, pattern))


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    """Follows links, each folder once: cases are often links to where the data lies."""
    visited.add(os.path.realpath(folder))
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and ending_of(entry) is not None and not _leads_somewhere(entry):
            raise BundleError(f"{entry} is a link that leads to no file: mend it or remove it.")
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
