# SPDX-License-Identifier: Apache-2.0
"""The two dialects of dataset.json."""

from __future__ import annotations

import pytest

from scripts.dataset_setup.description import Description, describe, read_json
from scripts.errors import UserError


def test_the_decathlon_maps_values_to_names() -> None:
    content = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"}}
    assert describe(content) == Description(("FLAIR", "T1w"), {0: "background", 1: "edema"})


def test_nnunet_maps_names_to_values_and_may_name_one_to_ignore() -> None:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": 2}}
    assert describe(content) == Description(("CT",), {0: "background", 1: "liver"}, ignore_value=2)


def test_regions_and_unknown_forms_name_nothing() -> None:
    assert describe({"labels": {"background": 0, "whole tumor": [1, 2]}}) == Description((), {0: "background"})
    assert describe({"labels": ["liver"], "modality": "CT"}) == describe({}) == Description()


def test_what_is_no_dictionary_is_refused(tmp_path) -> None:
    for text in ("{", "[1]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"dataset\.json"):
            read_json(tmp_path / "dataset.json")
