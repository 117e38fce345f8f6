# SPDX-License-Identifier: Apache-2.0
"""Files that a command writes and a person may edit: each carries a digest of what was written, so that edits show."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.errors import UserError

COMMAND = "new-dataset"
MARK = re.compile(rf"# Written by {re.escape(COMMAND)}, digest ([0-9a-f]{{16}})\.")


def yaml_with_digest(text: str) -> str:
    """A YAML text with a first line that names the command and the digest of the rest."""
    return f"# Written by {COMMAND}, digest {_digest(text)}. Edit it freely: an edited file is not overwritten.\n{text}"


def json_with_digest(content: Mapping[str, Any]) -> str:
    """A dictionary as JSON text, with keys of its own for the command and the digest of the others."""
    body = json.dumps(content, ensure_ascii=False, indent=1)
    marked = {**content, "written_by": COMMAND, "digest": _digest(body)}
    return json.dumps(marked, ensure_ascii=False, indent=1) + "\n"


def is_generated(path: Path) -> bool:
    """Whether the command wrote this file, edited since or not."""
    text = _read(path)
    return MARK.match(text) is not None or bool(read_generated(path))


def is_untouched(path: Path) -> bool:
    """Whether the command wrote this file and nobody changed it."""
    text = _read(path)
    match = MARK.match(text)
    if match:
        return match[1] == _digest(text.partition("\n")[2])
    content = _json_of(text)
    return content.get("written_by") == COMMAND and text == json_with_digest(
        {key: value for key, value in content.items() if key not in ("written_by", "digest")}
    )


def refuse_edited(path: Path, force: bool) -> None:
    """Stop before a file is overwritten that a person wrote or edited.

    Raises:
        UserError: naming the file and the ways out.
    """
    if force or not path.exists() or is_untouched(path):
        return
    history = "was edited after" if is_generated(path) else "was not written by"
    raise UserError(
        f"{path} {history} {COMMAND}: --force overwrites it, another --name or --output leaves it as it is."
    )


def read_generated(path: Path) -> dict[str, Any]:
    """A JSON file that the command wrote, edited since or not; of another file nothing."""
    content = _json_of(_read(path))
    return content if content.get("written_by") == COMMAND else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _json_of(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
