# SPDX-License-Identifier: Apache-2.0
"""What a measurement prints and writes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.experiments import measure


def weigh(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Weigh things."""
    for number, thing in enumerate(options.things):
        yield {"thing": thing, "weight g": 1.5 * number}
        if thing == "broken":
            raise SystemExit(3)


@pytest.fixture
def run():
    def start(*words: str) -> None:
        parser, options = measure.command_line("Measure.", (weigh,))
        options["weigh"]("things", nargs="+")
        options["weigh"]("--repeats", type=int, default=4)
        measure.run_measurement(parser, options, words)

    return start


def test_the_file_has_the_rows_and_what_they_were_measured_with(run, tmp_path: Path, capsys) -> None:
    file = tmp_path / "new folder" / "found.json"
    run("weigh", "a", "b c", "--json", str(file))
    assert capsys.readouterr().out.splitlines() == [
        "| thing | weight g |",
        "| --- | --- |",
        "| a | 0.0 |",
        "| b c | 1.5 |",
    ]
    found = json.loads(file.read_text())
    assert found["rows"] == [{"thing": "a", "weight g": 0.0}, {"thing": "b c", "weight g": 1.5}]
    assert found["repeats"] == 4
    module = "scripts.experiments.test_measure"  # where the command is defined
    assert shlex.split(found["command"]) == ["python", "-m", module, "weigh", "a", "b c", "--json", str(file)]
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cpu"] and 0 < found["machine"]["memory_gib"] < 2**20
    assert {name: found["versions"][name] for name in ("torch", "monai")} == {
        name: version(name) for name in ("torch", "monai")
    }
    metadata = json.loads((measure.CONFIGS / "metadata.json").read_text())
    assert found["versions"]["bundle"] == metadata["version"]
    if (measure.ROOT / ".git").exists():
        assert len(found["versions"]["commit"]) == 40 and found["versions"]["changed"] in (False, True)


def test_rows_are_printed_as_they_come_and_a_failed_measurement_writes_no_file(run, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("weigh", "broken", "--json", str(tmp_path / "found.json"))
    assert capsys.readouterr().out.splitlines()[2:] == ["| broken | 0.0 |"]
    assert not list(tmp_path.iterdir())
