# SPDX-License-Identifier: Apache-2.0
"""The measurement of many evaluated cases runs the real command on what it makes."""

from __future__ import annotations

from scripts.benchmarks import forked_command
from scripts.benchmarks.many_evaluations import main


def test_a_line_is_printed_for_each_number_of_cases(capsys, tmp_path, monkeypatch) -> None:
    def forked(words, folder):  # a process of its own takes seconds to load
        ended = forked_command.run(words, tmp_path / "streams")
        assert ended.code == 0, ended.errors
        return 1.0, 2.0

    monkeypatch.setattr("scripts.benchmarks.many_evaluations.measure_command", forked)
    main(["--cases", "1", "3", "--shape", "20", "18", "16"])
    assert capsys.readouterr().out.splitlines() == [
        f"{n} cases of 20 x 18 x 16 voxels: 1.0 s, peak memory 2 MiB" for n in (1, 3)
    ]
