# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written beside their name and renamed, with a digest where damage must show."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path, ending: str = "") -> Iterator[Path]:
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
    """Write a text in UTF-8, at once or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


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
