# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, CSV text, and checks of paths before a command starts its work."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.errors import UserError, first_line


@contextmanager
def atomic_write(path: str | Path, ending: str = "") -> Iterator[Path]:
    """Yield a temporary path in the same folder; afterwards rename the file to `path`, or delete it after an error.

    The content is flushed to the disk before the rename, so that even a power failure leaves either the old file or
    the new one.

    Args:
        path: the file's final path; its folder is created.
        ending: ending of the temporary name, for writers that choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # `tempfile` is not used, because only the owner can read its files.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{ending}")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(file: str | Path, link: str | Path) -> None:
    """Make a symbolic link to a file, or a copy if the system does not allow links (the default on Windows).

    Args:
        file: absolute path.
        link: path of the link, which does not exist yet.
    """
    try:
        Path(link).symlink_to(file)
    except (OSError, NotImplementedError):
        shutil.copyfile(file, link)


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 if it begins with a byte order mark; the mark is left out.

    Raises:
        OSError: if the file cannot be read.
        UserError: if it is in another encoding.
    """
    content = Path(path).read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8: save it again with this encoding.")
    return text.replace("\r\n", "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file that a person may have written.

    Raises:
        UserError: if the file cannot be read, is not JSON, or has a key twice, of which JSON would keep the last.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise UserError(f"{path} has the key `{key}` twice: join the two, or remove one.")
            content[key] = value
        return content

    try:
        return json.loads(read_text(path), object_pairs_hook=once)
    except UserError:  # also a ValueError
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


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


def save_atomically(content: Any, path: str | Path) -> None:
    """Write `content` with `torch.save`, atomically.

    Raises:
        UserError: if the disk is full or the folder cannot be written to; an existing file stays unchanged.
    """
    import torch  # imported here, because the command line starts without torch

    try:
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        # On a full disk torch's writer raises a RuntimeError; other RuntimeErrors are not about the file.
        if isinstance(error, RuntimeError) and not re.search(
            "PytorchStreamWriter|inline_container|iostream", str(error)
        ):
            raise
        raise UserError(
            f"{path} cannot be written ({first_line(error)}): free disk space or change the folder's permissions, then "
            "continue with --resume true."
        ) from error


def file_digest(path: str | Path) -> str | None:
    """Return the SHA-256 digest of a file; `None` if it does not exist."""
    if not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table as CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def csv_rows(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header line, as maps from column to text.

    Raises:
        OSError: if the file cannot be read.
        csv.Error: if it is not CSV.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def require_file(path: str | Path, hint: str) -> None:
    """Check before any work that the file `path` exists.

    Raises:
        UserError: if it does not; the message names the file and says what to do (`hint`).
    """
    if not Path(path).is_file():
        raise UserError(f"{path} {'is not a file' if Path(path).exists() else 'does not exist'}: {hint}.")


def require_folders(folders: Sequence[str | Path]) -> None:
    """Check before any work that folders, which need not exist yet, can be written to.

    Raises:
        UserError: if a folder or its nearest existing ancestor is a file or is not writable; names the folder.
    """
    for folder in map(Path, folders):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise UserError(f"{folder} cannot be a folder, because {existing} is a file: choose another.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written to: change the permissions of {existing} or choose another.")


def require_images(files: Sequence[str], folder: str | Path) -> None:
    """Check that there is an image to run on.

    Raises:
        UserError: for an empty list.
    """
    if not files:
        raise UserError(
            f"No image in {folder} (or none that image_pattern matches): give a folder of images with --dataset_dir."
        )
