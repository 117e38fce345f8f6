# SPDX-License-Identifier: Apache-2.0
"""Any split of labelled and unlabelled cases trains; none at all labelled is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.errors import root_user_error

ALL = range(6)
SPLITS = {
    "all cases labelled": {"labelled": ALL},
    "one labelled case": {"labelled": [0], "unlabelled": [1, 2, 3]},
    "one labelled case alone": {"labelled": [0]},
    "fewer unlabelled cases than a batch takes": {"labelled": [0, 1], "unlabelled": [2]},
    "fewer labelled cases than a batch takes": {"labelled": [0], "unlabelled": [1, 2, 3, 4, 5]},
}


def datalist(tiny_demo: Path, file: Path, labelled=(), unlabelled=()) -> dict:
    """Labelled cases under `training`, the others, which name no label file at all, under `unlabeled`."""
    cases = json.loads((tiny_demo / "dataset.json").read_text())["training"]

    def absolute(path):
        return str(tiny_demo / path)

    lists = {
        "training": [{key: absolute(cases[n][key]) for key in ("image", "label")} for n in labelled],
        "unlabeled": [absolute(cases[n]["image"]) for n in unlabelled],
    }
    file.write_text(json.dumps(lists))
    return {"datalist": str(file), "labelled_cases": None, "batch_labelled": 2, "batch_unlabelled": 3}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_trains(split, tiny_demo, make_workflow, tmp_path) -> None:
    options = datalist(tiny_demo, tmp_path / "list.json", **SPLITS[split])
    workflow = make_workflow("train.yaml", "methods/copy_paste.yaml", **options, max_steps=2)
    batch = next(iter(workflow.parser.get_parsed_content("train::dataloader")))
    assert len(batch["label"]) == 2
    assert len(batch["image"]) == (5 if SPLITS[split].get("unlabelled") else 2)
    workflow.run()
    model = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in model.values())
    last = workflow.parser.get_parsed_content("loss").last
    assert (last["copy_paste"] != 0) == bool(SPLITS[split].get("unlabelled"))


@pytest.mark.parametrize(
    ("lists", "options"),
    [
        ({"unlabelled": ALL}, {}),
        ({"labelled": ALL}, {"labelled_cases": 0}),
    ],
)
def test_no_labelled_case_is_one_sentence(lists, options, tiny_demo, make_workflow, tmp_path) -> None:
    options = datalist(tiny_demo, tmp_path / "list.json", **lists) | options
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", **options).run()
    mistake = str(root_user_error(caught.value))
    assert "label" in mistake and "list.json" in mistake and "\n" not in mistake


def test_training_cases_that_all_lack_a_label_are_one_sentence(tiny_demo, make_workflow, tmp_path) -> None:
    file = tmp_path / "list.json"
    options = datalist(tiny_demo, file, labelled=ALL)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"training": [{"image": case["image"]} for case in content["training"]]}))
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", **options).run()
    assert str(root_user_error(caught.value)) == (
        f"No training case in {file} has a label: at least one must, to learn from."
    )
