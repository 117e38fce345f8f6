# SPDX-License-Identifier: Apache-2.0
"""Settings are chosen on training cases only."""

from __future__ import annotations

import json

import pytest

from scripts.errors import UserError
from scripts.experiments.held_out_datalist import main


def test_no_test_case_gets_into_the_list_and_order_is_kept(tiny_demo, tmp_path) -> None:
    out = tmp_path / "dev.json"
    main(["--dataset_dir", str(tiny_demo), "--first", "3", "--hold_out", "2", "--output", str(out)])
    original, made = json.loads((tiny_demo / "dataset.json").read_text()), json.loads(out.read_text())
    expected = [str(tiny_demo.resolve() / case["image"]) for case in original["training"]]
    assert [case["image"] for case in made["training"]] == expected[:3]
    assert [case["image"] for case in made["test"]] == expected[3:5]


def test_more_cases_than_there_are_is_refused(tiny_demo, tmp_path) -> None:
    with pytest.raises(UserError, match="at most 6"):
        main(["--dataset_dir", str(tiny_demo), "--first", "5", "--hold_out", "2", "--output", str(tmp_path / "x.json")])
