# SPDX-License-Identifier: Apache-2.0
"""The measurement of many checks runs."""

from __future__ import annotations

from scripts.benchmarks.many_checks import main


def test_a_line_is_printed_for_each_number_of_cases(capsys) -> None:
    main(["--cases", "2", "6", "--shape", "20", "18", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n} cases of 20 x 18 x 16 voxels" for n in (2, 6)]
