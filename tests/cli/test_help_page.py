# SPDX-License-Identifier: Apache-2.0
"""docs/command_line.md shows the actual help; docs/errors.md shows the actual exit codes, files and keys."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from scripts.cli.commands import main
from tests.check_folder import NAMES, CheckFolder

DOCS = Path(__file__).resolve().parents[2] / "docs"
HELP = re.compile(r"<!-- output of: (.*?) -->\n```\n(.*?)\n```", re.DOTALL)
ERROR = re.compile(r"```console\n\$ (.*?)\n.*?\nError: (.*?)\n\$ echo \$\?\n(\d+)\n```", re.DOTALL)
NAMED = [
    ["data/scans/mien.yaml"],
    ["data/scans/broken.yaml", "line 3"],
    ["'spacings'", "data/scans/misspelt.yaml", "spacing?"],
    ["data/scanz", "dataset_dir"],
    ["data/scans/labels/l1.nii.gz", " 7,", "label_values", "ignore_value"],
]
"""What each error of docs/errors.md names, in order."""


def words_of(line: str) -> list[str]:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "scripts"]
    return words[3:]


def test_the_page_shows_the_actual_help(capsys) -> None:
    shown = HELP.findall((DOCS / "command_line.md").read_text(encoding="utf-8"))
    assert len(shown) == 2
    for line, text in shown:
        try:
            main(words_of(line))
        except SystemExit as stop:
            assert stop.code == 0
        assert capsys.readouterr().out.strip() == text, f"copy the output of `{line}` into docs/command_line.md"


@pytest.fixture
def scans(tmp_path: Path, monkeypatch) -> None:
    """A current folder with the `data/scans` of the page."""
    folder = CheckFolder(tmp_path / "data/scans")
    (folder.root / "dataset.json").write_text(json.dumps(folder.lists))
    settings = {
        "dataset_name": "mine", "dataset_dir": "data/scans", "datalist": "dataset.json", "labelled_cases": 4,
        "label_names": NAMES, "spacing": [1.5, 2.0, 2.5], "roi_size": [32, 16, 16], "widths": [4, 4, 4, 4],
        "norm": "instance", "device": "cpu",
    }  # fmt: skip
    text = yaml.safe_dump(settings, sort_keys=False)
    (folder.root / "mine.yaml").write_text(text)
    (folder.root / "misspelt.yaml").write_text(text.replace("spacing:", "spacings:"))
    (folder.root / "broken.yaml").write_text(text.replace("datalist: ", "datalist: dataset: "))
    classes = folder.classes()
    classes[4, 5, 6] = 7
    folder.save_label("l1", classes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scripts.cli.runs.DATA", tmp_path / "data")


@pytest.mark.parametrize("number", range(len(NAMED)))
def test_the_page_shows_the_actual_error(number: int, scans, capsys) -> None:
    shown = ERROR.findall((DOCS / "errors.md").read_text(encoding="utf-8"))
    assert len(shown) == len(NAMED)
    line, sentence, code = shown[number]
    assert main([*words_of(line), "--output_dir", "out", "--ckpt_dir", "models"]) == int(code)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for name in NAMED[number]:
        assert name in sentence and name in last
