# SPDX-License-Identifier: Apache-2.0
"""The look at a long training sees what grows."""

from __future__ import annotations

import re

from scripts.benchmarks import long_training
from scripts.benchmarks.long_training import COLUMNS, grown, main


def test_a_line_is_printed_for_each_step_and_number_of_workers(capfd, monkeypatch) -> None:
    monkeypatch.setattr(long_training, "grown", lambda rows: [])  # memory settles after the first steps
    main(["--steps", "1", "3", "--workers", "1"])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("1 workers, step")]
    assert [re.sub(r"[\d.]+ (MiB|open|threads)", r"N \1", line) for line in lines] == [
        f"1 workers, step {n}: N MiB and N MiB of workers, N open files, N threads, 2 processes" for n in (1, 3)
    ]


def test_growth_beyond_two_per_cent_and_any_further_file_are_told() -> None:
    def rows(*last: float) -> list[dict[str, str]]:
        values = ((2, 300, 400.0, 100.0, 40, 9, 3), (2, 3000, *last))
        return [dict(zip(COLUMNS, map(str, row), strict=True)) for row in values]

    assert grown(rows(405.0, 104.0, 40, 9, 3)) == []
    assert grown(rows(406.0, 105.0, 40, 9, 3)) == ["memory 500.0 and 511.0 MiB"]
    assert grown(rows(400.0, 100.0, 41, 10, 3)) == ["open_files 40 and 41", "threads 9 and 10"]
