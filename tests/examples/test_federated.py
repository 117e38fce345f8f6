# SPDX-License-Identifier: Apache-2.0
"""Federated sites exchange the weights of the network and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from docs.examples import federated_client
from docs.examples.federated import average, make_site, run, site_datalists
from tests.conftest import TINY


def test_cases_are_dealt_out_without_overlap(tiny_demo, tmp_path) -> None:
    lists = [json.loads(path.read_text()) for path in site_datalists(tiny_demo, tmp_path, 2)]
    first, second = ({case["image"] for case in each["training"]} for each in lists)
    assert len(first) == len(second) == 3 and not first & second
    assert lists[0]["validation"] == lists[1]["validation"] != []


def test_the_average_is_the_mean_and_counters_stay_integers() -> None:
    mean = average([{"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)}, {"w": torch.tensor([3.0, 0.0]), "n": 6}])
    assert torch.equal(mean["w"], torch.tensor([2.0, 2.0]))
    assert mean["n"].dtype == torch.int64 and mean["n"] == 4


@pytest.fixture
def sites(tiny_demo: Path, tmp_path: Path) -> list:
    settings = {**TINY, "max_steps": 4, "train::epoch_length": 2, "labelled_cases": 2}
    lists = site_datalists(tiny_demo, tmp_path, 2)
    return [make_site(number, path, tmp_path, settings) for number, path in enumerate(lists)]


def test_sites_exchange_weights_and_keep_their_memories(sites, tmp_path) -> None:
    assert len(run(sites, rounds=2)) == 3
    memories = [site.train_workflow.parser.get_parsed_content("memory").state_dict() for site in sites]
    assert any(not torch.equal(memories[0][key], memories[1][key]) for key in memories[0])
    sent = sites[0].get_weights(extra={}).weights
    assert set(sent) == set(sites[0].trainer.network.state_dict())
    assert [site.trainer.state.iteration for site in sites] == [4, 4]
    assert all((tmp_path / f"site_{number}/models/model.pt").is_file() for number in (0, 1))


def test_the_nvflare_client_sends_only_the_weights_of_the_network_and_changes_its_own_memory(
    tiny_demo, tmp_path, monkeypatch
) -> None:
    """A stand-in for NVFlare's Client API, because NVFlare needs its own environment (docs/readers.md)."""
    (datalist,) = site_datalists(tiny_demo, tmp_path, 1)
    settings = {**TINY, "max_steps": 4, "train::epoch_length": 2, "labelled_cases": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    network = make_site(1, datalist, tmp_path, settings).trainer.network
    shared = {key: value.numpy() for key, value in network.state_dict().items()}
    sent: list[SimpleNamespace] = []
    client = ModuleType("nvflare.client")
    client.init = lambda: None
    client.get_site_name = lambda: "site-1"
    client.is_running = lambda: len(sent) < 2
    client.receive = lambda: SimpleNamespace(params=sent[-1].params if sent else shared, current_round=len(sent))
    client.send = sent.append
    exchanged = ModuleType("nvflare.app_common.abstract.fl_model")
    exchanged.FLModel = SimpleNamespace
    package = ModuleType("nvflare")
    package.client = client
    for name, module in {"nvflare": package, "nvflare.client": client, exchanged.__name__: exchanged}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["federated_client", "--folder", str(tmp_path)])
    federated_client.main()
    assert [set(each.params) for each in sent] == [set(shared)] * 2
    assert any(not torch.equal(sent[0].params[key], torch.as_tensor(shared[key])) for key in shared)
    rows = [json.loads(line) for line in (tmp_path / "report_0.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1] and rows[0]["memory"] != rows[1]["memory"]
    assert [each.metrics["val_mean_dice"] for each in sent] == [row["dice"] for row in rows]
