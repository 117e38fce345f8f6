# SPDX-License-Identifier: Apache-2.0
"""Short commands take turns, and their imports are added up by library; no time is asserted."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from scripts.experiments import start_up
from scripts.images.find import find_images
from scripts.images.read import read_volume


def test_commands_take_turns_and_the_table_has_their_medians(monkeypatch, capsys) -> None:
    @contextmanager
    def wanted():
        yield {"a": ["first"], "b": ["second"]}

    times, asked = iter([(1.0, 0.5), (9.0, 1.0), (3.0, 0.7), (7.0, 4.0), (2.0, 0.6), (8.0, 2.0)]), []
    monkeypatch.setattr(start_up, "short_commands", wanted)
    monkeypatch.setattr(start_up, "run_command", lambda words: asked.extend(words) or next(times))
    start_up.main(["commands", "--repeats", "3"])
    assert asked == ["first", "second"] * 3
    assert capsys.readouterr().out.splitlines()[2:] == ["| a | 2.0 | 0.6 |", "| b | 8.0 | 2.0 |"]


def test_time_and_processor_time_are_those_of_the_command() -> None:
    seconds, processor = start_up.run_command(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(0.4)"])
    assert seconds > 0.4 and 0 < processor < seconds
    with pytest.raises(subprocess.CalledProcessError):
        start_up.run_command(["no_such_module"])


def test_imports_are_added_up_by_library(monkeypatch) -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:   1000000 |   1000000 |     torch._C",
        "import time:    500000 |   1500000 |   torch",
        "a line of the command",
        "import time:    250000 |   1750000 | scripts.cli",
    ]
    done = subprocess.CompletedProcess([], 0, stderr="\n".join(lines))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert start_up.import_seconds(["x"]) == {"torch": 1.5, "scripts": 0.25}


def test_the_series_is_one_volume(tmp_path: Path) -> None:
    folder = start_up.write_series(tmp_path / "series", (6, 5, 4))
    (path,) = find_images(folder)
    header, voxels = read_volume(path)
    assert voxels.shape == (1, 6, 5, 4) and len(np.unique(voxels)) > 20
    assert np.allclose(np.abs(np.linalg.det(header.affine)), 1)
