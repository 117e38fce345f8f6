# SPDX-License-Identifier: Apache-2.0
"""The measurement of one large volume runs the real command."""

from __future__ import annotations

import re

from scripts.benchmarks.large_volume import main


def test_the_command_prints_what_it_measured(capsys) -> None:
    main(["--shape", "20", "24", "28", "--voxel", "2", "2", "2", "--base_filters", "2", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert re.search(r"20 x 24 x 28 voxels: \d+ s, peak memory 0\.\d\d GiB", printed)
