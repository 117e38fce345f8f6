# SPDX-License-Identifier: Apache-2.0
"""Short campaigns. The modules' own command lines run longer ones and write the tables of docs/results."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.experiments import load
from tests.campaigns import kill_runs, ranks

pytestmark = pytest.mark.slow


def test_runs_killed_20_times_end_like_uninterrupted_ones(tmp_path: Path) -> None:
    kill_runs.main(["--kills", "20", "--folder", str(tmp_path), "--results", str(tmp_path / "kills.csv")])


@pytest.mark.parametrize("control", [False, True], ids=["two processes", "control"])
def test_the_comparison_of_ranks_fills_its_table(control: bool, tiny_demo: Path) -> None:
    rows = ranks.compare("train", True, 3, tiny_demo, control)
    assert [row["step"] for row in rows] == [1, 3]
    assert all(row["memory_on_both_ranks"] == "equal" for row in rows)
    assert 0 < float(rows[-1]["weight_difference"]) < 1e-6


def test_a_long_training_takes_no_more_memory_files_or_threads() -> None:
    load.main(["long-training", "--steps", "300", "1000"])
