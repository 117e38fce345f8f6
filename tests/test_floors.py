# SPDX-License-Identifier: Apache-2.0
"""The house has floors, and imports go down only."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FLOORS = [
    {"errors", "files", "progress", "seeding"},
    {"networks", "images", "distributed", "evaluation"},
    {"prototypes"},
    {"losses", "data"},
    {"training", "inference"},
    {"labelling", "export", "dataset_setup"},
    {"cli", "crossval", "report", "__main__"},
    {"experiments"},
]
"""Folders, and files of `scripts` itself, from the bottom up."""

FILES = sorted(file for file in SCRIPTS.rglob("*.py") if file.name != "__init__.py")


def floor_of(module: str) -> str:
    return module.split(".")[1]


@cache
def imported_modules(source: str) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            modules.append(node.module)
    return [m for m in modules if m == "scripts" or m.startswith("scripts.")]


def floor_index(name: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if name in floor)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SCRIPTS)))
def test_a_file_imports_only_from_its_own_floor_and_those_below(file: Path) -> None:
    own = floor_index(file.relative_to(SCRIPTS).parts[0].removesuffix(".py"))
    above = [m for m in imported_modules(file.read_text(encoding="utf-8")) if floor_index(floor_of(m)) > own]
    assert not above, f"{file.name} reaches up to {above}"


def test_no_file_is_longer_than_400_lines() -> None:
    assert not [file.name for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 400]


SMALL = {"networks/norms.py": "networks are a floor of their own, below the inferer that uses it", "__main__.py": ""}
"""Files of fewer than 40 lines that stay although a single module imports them, with the reason."""


def test_a_small_file_has_several_importers() -> None:
    sources = {file: file.read_text(encoding="utf-8") for file in FILES}
    configs = "".join(file.read_text(encoding="utf-8") for file in SCRIPTS.parent.joinpath("configs").rglob("*.yaml"))
    for file, source in sources.items():
        name = str(file.relative_to(SCRIPTS))
        module = f"scripts.{name.removesuffix('.py').replace('/', '.')}"
        importers = sum(module in imported_modules(other) for other in sources.values()) + (f"{module}." in configs)
        assert len(source.splitlines()) >= 40 or importers > 1 or name in SMALL, name


def test_import_detection_sees_what_it_should() -> None:
    source = "import scripts.training.teacher\nfrom scripts.losses.base import LossTerm\nimport torch\n"
    assert imported_modules(source) == ["scripts.training.teacher", "scripts.losses.base"]
