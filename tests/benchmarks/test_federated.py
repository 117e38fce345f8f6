# SPDX-License-Identifier: Apache-2.0
"""Federated sites share the network's weights and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.federated import average, make_site, run, site_datalists
from tests.conftest import TINY


def test_cases_are_dealt_out_without_overlap(tiny_demo, tmp_path) -> None:
    lists = [json.loads(path.read_text()) for path in site_datalists(tiny_demo, tmp_path, 2)]
    first, second = ({case["image"] for case in each["training"]} for each in lists)
    assert len(first) == len(second) == 3 and not first & second
    assert lists[0]["validation"] == lists[1]["validation"] != []


def test_the_average_is_the_mean_and_counters_stay_whole() -> None:
    mean = average([{"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)}, {"w": torch.tensor([3.0, 0.0]), "n": 6}])
    assert torch.equal(mean["w"], torch.tensor([2.0, 2.0]))
    assert mean["n"].dtype == torch.int64 and mean["n"] == 4


@pytest.fixture
def sites(tiny_demo: Path, tmp_path: Path) -> list:
    settings = {**TINY, "max_steps": 4, "train::epoch_length": 2, "labelled_cases": 2}
    lists = site_datalists(tiny_demo, tmp_path, 2)
    return [make_site(number, path, tmp_path, settings) for number, path in enumerate(lists)]


def test_weights_travel_and_memories_stay(sites, tmp_path) -> None:
    assert len(run(sites, rounds=2)) == 3
    memories = [site.train_workflow.parser.get_parsed_content("memory").state_dict() for site in sites]
    assert any(not torch.equal(memories[0][key], memories[1][key]) for key in memories[0])
    sent = sites[0].get_weights(extra={}).weights
    assert set(sent) == set(sites[0].trainer.network.state_dict())
    assert [site.trainer.state.iteration for site in sites] == [4, 4]
    assert all((tmp_path / f"site_{number}/models/model.pt").is_file() for number in (0, 1))
