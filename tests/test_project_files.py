# SPDX-License-Identifier: Apache-2.0
"""The project's own files agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
METADATA = json.loads((ROOT / "configs/metadata.json").read_text(encoding="utf-8"))


def test_the_version_is_written_once_and_has_an_entry_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert max(METADATA["changelog"], key=lambda v: tuple(map(int, v.split(".")))) == METADATA["version"]


def test_required_packages_of_the_metadata_are_those_of_the_requirements() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    named = {
        "monai": METADATA["monai_version"],
        "torch": METADATA["pytorch_version"],
        "numpy": METADATA["numpy_version"],
    }
    named |= METADATA["required_packages_version"]
    assert named == {package: pinned[package] for package in named}


@pytest.mark.parametrize("paper", ["MICCAI 2022", "ICCV 2021", "CVPR 2023", "NeurIPS 2017"])
def test_citation_and_metadata_name_the_papers_whose_methods_trained_the_model(paper: str) -> None:
    venue, year = paper.split()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    assert any((work["collection-title"], work["year"]) == (venue, int(year)) for work in cited)
    assert any(paper in reference for reference in METADATA["references"])


def test_make_creates_the_environment_again_only_when_requirements_change(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))

    def commands(target: str) -> str:
        done = subprocess.run(["make", "-n", "-C", str(tmp_path), target], capture_output=True, text=True, check=True)
        return done.stdout

    assert "-m venv --clear .venv" in commands("demo") and "-m venv --clear .venv" in commands("test")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.requirements").touch()
    (tmp_path / ".venv/.requirements-dev").touch()
    assert "-m venv" not in commands("demo") and "pip install" not in commands("test")
    later = (tmp_path / ".venv/.requirements").stat().st_mtime + 5
    subprocess.run(["touch", "-d", f"@{later}", str(tmp_path / "requirements.txt")], check=True)
    assert "-m venv --clear .venv" in commands("demo") and "-m venv --clear .venv" in commands("test")


def test_ci_calls_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.search(r"^make demo STEPS=\d+$", script, re.MULTILINE) and re.search(r"^make test$", script, re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)[0].split("\n")
    assert first[0].startswith("make demo") and first[1].startswith("make test")
