# SPDX-License-Identifier: Apache-2.0
"""The house has floors, and imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FLOORS = [
    "errors", "whole_files", "functional", "networks", "prototypes", "terms", "data", "engine", "workflows",
    "benchmarks", "new_dataset", "convert_left_atrium", "export",
]  # fmt: skip
"""Folders from the bottom up, and commands (files of `scripts` itself) on top."""

FILES = sorted(file for file in SCRIPTS.rglob("*.py") if file.name != "__init__.py")


def floor_of(module: str) -> str:
    return module.split(".")[1]


def imported_modules(source: str) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            modules.append(node.module)
    return [m for m in modules if m == "scripts" or m.startswith("scripts.")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SCRIPTS)))
def test_a_file_imports_only_from_its_own_floor_and_those_below(file: Path) -> None:
    own = FLOORS.index(file.relative_to(SCRIPTS).parts[0].removesuffix(".py"))
    above = [m for m in imported_modules(file.read_text(encoding="utf-8")) if FLOORS.index(floor_of(m)) > own]
    assert not above, f"{file.name} reaches up to {above}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SCRIPTS)))
def test_a_file_holds_one_idea_in_300_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


def test_functional_is_arithmetic_without_modules_or_files() -> None:
    for file in (SCRIPTS / "functional").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        bases = [ast.unparse(b) for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for b in n.bases]
        assert not any("Module" in base for base in bases), file.name
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "open" not in calls, file.name


def test_import_detection_sees_what_it_should() -> None:
    source = "import scripts.engine.teacher\nfrom scripts.terms.base import Term\nimport torch\n"
    assert imported_modules(source) == ["scripts.engine.teacher", "scripts.terms.base"]
