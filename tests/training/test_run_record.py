# SPDX-License-Identifier: Apache-2.0
"""`run.json` and the models say how a training was done."""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.data.weights import RUN, record_of
from scripts.errors import UserError
from scripts.training import run_record
from scripts.training.run_record import data_digests, describe_weights, git_state


def run_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def trained_record(file: Path) -> dict:
    return record_of(torch.load(file, weights_only=True), RUN)


def test_a_run_is_recorded_beside_its_models_and_in_them(train, tiny_demo, tmp_path) -> None:
    train(max_steps=2, val_interval=1, seed=7)
    run = run_of(tmp_path / "models")
    assert (run["steps"], run["seed"], run["resumed"], run["initial_weights"]) == (2, 7, [], None)
    assert datetime.fromisoformat(run["started"]) <= datetime.fromisoformat(run["ended"])
    assert run["device"]["type"] == "cpu" and run["device"]["processes"] == 1
    assert run["versions"]["torch"] == torch.__version__
    datalist = (tiny_demo / "dataset.json").read_bytes()
    assert run["data"]["datalist"]["sha256"] == hashlib.sha256(datalist).hexdigest()
    counts = {role: run["data"][role]["cases"] for role in ("labelled", "unlabelled", "validation", "test")}
    assert counts == {"labelled": 2, "unlabelled": 4, "validation": 1, "test": 2}
    metrics = run["metrics"]
    assert metrics["Loss/supervised"] > 0
    best = metrics["best_val_mean_dice"]
    assert best["step"] in (1, 2) and best["value"] >= metrics["val_mean_dice"]
    assert trained_record(tmp_path / "models/model.pt") == run
    at_best = trained_record(tmp_path / "models/model_best.pt")
    assert at_best["ended"] is None and at_best["steps"] == best["step"]
    assert at_best["metrics"]["val_mean_dice"] == best["value"]


def test_a_program_can_follow_a_run(train, tmp_path, monkeypatch) -> None:
    written = {}
    monkeypatch.setattr(run_record, "STEPS", 2)
    monkeypatch.setattr(run_record, "write_text", lambda path, text: written.setdefault(path, []).append(text))
    train(max_steps=5)
    beside_weights, in_output_dir = (written[tmp_path / folder / "run.json"] for folder in ("models", "out"))
    assert in_output_dir == beside_weights
    seen = [json.loads(text) for text in beside_weights]
    assert [run["steps"] for run in seen] == [0, 2, 4, 5]
    assert [run["ended"] is None for run in seen] == [True, True, True, False]
    assert seen[1]["metrics"]["Loss/supervised"] > 0


def test_a_resumed_run_keeps_its_start_and_adds_a_line(train, make_workflow, tmp_path) -> None:
    train(max_steps=2)
    first = run_of(tmp_path / "models")
    file = tmp_path / "models/run.json"
    file.write_text(file.read_text().replace(first["started"], "2000-01-01T00:00:00+00:00"))
    train(max_steps=3, resume=True)
    again = run_of(tmp_path / "models")
    assert again["started"] == "2000-01-01T00:00:00+00:00" and again["steps"] == 3
    assert [each["step"] for each in again["resumed"]] == [2]
    train(max_steps=1)  # a new run in the folder of a finished one
    assert run_of(tmp_path / "models")["resumed"] == [] and run_of(tmp_path / "models")["steps"] == 1


def test_given_weights_are_named_by_their_digest(train, tmp_path) -> None:
    train(max_steps=1, name="first")
    file = tmp_path / "first/model.pt"
    train(max_steps=1, name="second", initial_weights=str(file))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run_of(tmp_path / "second")["initial_weights"] == {"file": "model.pt", "sha256": sha256}


def test_digests_name_the_cases_of_a_role_in_any_order_and_folder() -> None:
    def digest(*names: str) -> str:
        return data_digests(DatasetSpec("x"), CaseLists(labelled=[{"case": name} for name in names]))["labelled"]

    assert digest("a", "b") == digest("b", "a")
    assert digest("a", "b") != digest("a", "c")
    assert digest("a", "b") == {"cases": 2, "sha256": hashlib.sha256(b"a\nb").hexdigest()}
    assert data_digests(DatasetSpec("x"), CaseLists())["datalist"]["sha256"] is None


def test_the_state_of_a_repository_is_its_commit_and_whether_files_changed(tmp_path) -> None:
    assert git_state(tmp_path) is None
    (tmp_path / "file").write_text("1")
    words = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for more in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run([*words, *more], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert git_state(tmp_path) == {"commit": head.stdout.strip(), "changed": False}
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"commit": head.stdout.strip(), "changed": True}
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None


def test_a_file_is_described_by_what_it_records(train, tmp_path) -> None:
    state = train(max_steps=1)
    described = describe_weights(tmp_path / "models/model.pt")
    assert described["weights"] == sum(value.numel() for value in state.values())
    assert described["network"]["arguments"]["out_channels"] == 4
    assert described["preprocessing"]["spacing"] == [3.0, 3.0, 4.0]
    assert described["run"]["steps"] == 1
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "plain.pt")
    plain = describe_weights(tmp_path / "plain.pt")
    assert plain["weights"] == 6 and set(plain) == {"file", "sha256", "weights"}


@pytest.mark.parametrize("content", [None, [1, 2], {"a": 1}])
def test_a_file_without_weights_is_named(content, tmp_path) -> None:
    if content is not None:
        torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt"):
        describe_weights(tmp_path / "other.pt")
