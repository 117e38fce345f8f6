# SPDX-License-Identifier: Apache-2.0
"""The files that hold the states of a run: the newest few, each whole and with a digest."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.errors import UserError, first_line
from scripts.files import atomic_write, digest_path, is_damaged, leftovers, remove, write_digest

logger = logging.getLogger("CheckpointFiles")

PATTERN = "checkpoint_" + "[0-9]" * 8 + ".pt"


def save_atomically(content: Any, path: str | Path, digest: bool = False) -> None:
    """`torch.save` into a file that is whole or not there.

    Args:
        content: what is saved.
        path: the file's name.
        digest: whether its SHA-256 digest is written too, before the file: a file under its name always has one.

    Raises:
        UserError: if the disk is full or the folder cannot be written to; a file that was there is as it was.
    """
    try:
        with atomic_write(path) as beside:
            torch.save(content, beside)
            if digest:
                write_digest(beside, path)
    except (OSError, RuntimeError) as error:  # torch reports a full or closed disk as a RuntimeError of its writer
        if isinstance(error, RuntimeError) and not re.search(
            "PytorchStreamWriter|inline_container|iostream", str(error)
        ):
            raise
        raise UserError(
            f"{path} cannot be written ({first_line(error)}): free space or mend the folder's permissions, then go on "
            "with --resume true."
        ) from error


class CheckpointFiles:
    """Files `checkpoint_<step>.pt` in one folder.

    Args:
        folder: it is made when it is first written to.
        keep: so many stay, at least 1.
    """

    def __init__(self, folder: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """The files, newest first."""
        return sorted(self.folder.glob(PATTERN), reverse=True)

    def path(self, step: int) -> Path:
        """Where the state of a step lies."""
        return self.folder / f"checkpoint_{step:08d}.pt"

    def save(self, content: Mapping[str, Any], step: int) -> Path:
        """Write the state of a step, then remove the oldest ones."""
        path = self.path(step)
        save_atomically(dict(content), path, digest=True)
        # A state of a later step is damaged, as this run went on from one before it: it takes nobody's place.
        for old in [other for other in self.paths() if other.name <= path.name][self.keep :]:
            remove(old)
        return path

    def newest(self) -> tuple[dict[str, Any] | None, Path | None]:
        """The newest state that can be read, and its file; damaged and foreign ones are told of and passed over."""
        for path in self.paths():
            try:
                if is_damaged(path):
                    reason = f"it differs from {digest_path(path).name}"
                else:
                    content = torch.load(path, map_location="cpu", weights_only=True)
                    if isinstance(content, dict) and "run" in content:
                        return content, path
                    reason = "it is no state of a run"
            except Exception as error:  # a damaged file can fail in any way; the one before it is tried instead
                reason = first_line(error)
            logger.warning(f"{path} cannot be used ({reason}); trying the one before it.")
        return None, None

    def sweep(self) -> None:
        """Remove what a process that was killed while writing has left, and digests whose file is gone."""
        for path in leftovers(self.folder / PATTERN):
            path.unlink(missing_ok=True)
        for digest in self.folder.glob(digest_path(PATTERN).name):
            if not digest.with_suffix("").exists():
                digest.unlink(missing_ok=True)
