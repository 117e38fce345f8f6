# SPDX-License-Identifier: Apache-2.0
"""The bundle as one zip file: what it needs to run, and nothing that grew beside it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from scripts.errors import BundleError
from scripts.whole_files import written_whole

FOLDERS = ("configs", "scripts", "docs", "models")
FILES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "requirements-export.txt",
    "requirements-tracking.txt",
)
MODEL_NAMES = {"model.pt", "model_best.pt", "model.ts", "model.onnx", "model.pt2", "README.md"}
"""Of `models/`; the states of runs stay where they are."""

REQUIRED = ("configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "LICENSE", "models/model.pt")


def zip_bundle(
    root: Path, path: Path, models: Path | None = None, instead: Mapping[str, str] | None = None
) -> list[str]:
    """Write `path` with one folder in it, called as the file is, that holds the bundle.

    Args:
        root: the bundle's folder.
        path: the zip file.
        models: folder of the weights, by default `root/models`.
        instead: name in the bundle to the text that stands there instead of the file's.

    Returns:
        The names in it, relative to the bundle.

    Raises:
        BundleError: if a part of every bundle is not there.
    """
    models, instead = models or root / "models", instead or {}
    content = {name: root / name for name in FILES if (root / name).is_file()}
    for folder in FOLDERS:
        home = models if folder == "models" else root / folder
        for file in sorted(home.rglob("*")):
            inside = file.relative_to(home)
            if file.is_file() and _belongs(folder, inside):
                content[f"{folder}/{inside.as_posix()}"] = file
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        hint = "train first, or name the weights by --ckpt_file" if missing == ["models/model.pt"] else "restore it"
        raise BundleError(f"The bundle in {root} has no {missing[0]}: {hint}.")
    with written_whole(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(content.items()):
            if name in instead:
                archive.writestr(f"{path.stem}/{name}", instead[name])
            else:
                archive.write(file, f"{path.stem}/{name}")
    return sorted(content)


def _belongs(folder: str, inside: Path) -> bool:
    if any(part.startswith(".") or part == "__pycache__" for part in inside.parts) or inside.suffix == ".pyc":
        return False
    return folder != "models" or str(inside) in MODEL_NAMES
