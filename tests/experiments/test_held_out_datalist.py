# SPDX-License-Identifier: Apache-2.0
"""A datalist for tuning contains training cases only."""

from __future__ import annotations

import json

import pytest

from scripts.errors import UserError
from scripts.experiments.held_out_datalist import main


def test_the_list_has_no_test_case_and_keeps_the_order(tiny_demo, tmp_path) -> None:
    out = tmp_path / "dev.json"
    main(["--dataset_dir", str(tiny_demo), "--first", "3", "--hold_out", "2", "--output", str(out)])
    original, made = json.loads((tiny_demo / "dataset.json").read_text()), json.loads(out.read_text())
    expected = [str(tiny_demo.resolve() / case["image"]) for case in original["training"]]
    assert [case["image"] for case in made["training"]] == expected[:3]
    assert [case["image"] for case in made["test"]] == expected[3:5]


def test_too_many_cases_are_refused(tiny_demo, tmp_path) -> None:
    with pytest.raises(UserError, match=r"first.*hold_out.*6"):
        main(["--dataset_dir", str(tiny_demo), "--first", "5", "--hold_out", "2", "--output", str(tmp_path / "x.json")])
