# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, digests of files, CSV text, and checks of paths before any work."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.errors import UserError


@contextmanager
def atomic_write(path: str | Path, ending: str = "") -> Iterator[Path]:
    """A path to write to, on the same disk; at the end it takes the name `path`, after an error it is gone.

    The content reaches the disk before the name does, so that a power failure too leaves the old file or the new one.

    Args:
        path: the file's name; its folder is made.
        ending: of the path to write to, for a writer that goes by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files only their owner may read.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp{ending}")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Raises:
        UserError: if the folder cannot be written to.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def leftovers(path: str | Path) -> list[Path]:
    """What processes that were killed while writing `path` have left beside it."""
    path = Path(path)
    return sorted(path.parent.glob(f".{path.name}.*.tmp*"))


def digest_path(path: str | Path) -> Path:
    """Where the digest of a file lies."""
    return Path(f"{path}.sha256")


def write_digest(content: Path, path: str | Path) -> None:
    """Write the SHA-256 digest of the file `content` for the file `path`, in the form that `sha256sum -c` reads."""
    write_text(digest_path(path), f"{_sha256(content)}  {Path(path).name}\n")


def is_damaged(path: str | Path) -> bool:
    """Whether a file differs from its digest; one without a digest cannot be told and passes."""
    try:
        expected = digest_path(path).read_text(encoding="utf-8").split()[0]
    except FileNotFoundError:
        return False
    except (UnicodeDecodeError, IndexError):  # the digest itself is damaged, so nothing vouches for the file
        return True
    return _sha256(Path(path)) != expected


def remove(path: str | Path) -> None:
    """Remove a file with its digest."""
    Path(path).unlink(missing_ok=True)
    digest_path(path).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def require_file(path: str | Path, hint: str) -> None:
    """Stop before any work if `path` is not there.

    Raises:
        UserError: naming the file and the way out, `hint`.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: {hint}.")


def require_folders(folders: Sequence[str | Path]) -> None:
    """Stop before any work if something cannot be written into a folder, there already or to be made.

    Raises:
        UserError: naming the folder, if it or the nearest one above it that is there is a file or may not be written.
    """
    for folder in map(Path, folders):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise UserError(f"{folder} cannot be a folder to write to, as {there} is none: name another.")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written to: change the permissions of {there}, or name another.")


def require_images(files: Sequence[str], folder: str | Path) -> None:
    """Stop if there is nothing to run on.

    Raises:
        UserError: for an empty list.
    """
    if not files:
        raise UserError(
            f"No image lies in {folder} (or none that image_pattern names): give a folder of images by --dataset_dir."
        )
