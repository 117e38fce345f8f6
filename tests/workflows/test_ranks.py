# SPDX-License-Identifier: Apache-2.0
"""Two processes of configs/multi_gpu_train.yaml compared with one that has twice the batch; killed and resumed runs."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.errors import root_user_error
from scripts.training.checkpoint import newest_checkpoint
from tests.conftest import ROOT
from tests.rank_processes import run_ranks, start_ranks
from tests.recorded_runs import method_settings, train_and_record

STEPS = 2
SMALLER = {
    "widths": [2, 2, 2, 2],
    "norm": "instance",
    "roi_size": [32, 16, 16],
    "labelled_cases": 3,
    "validation_cases": 1,  # with the demo's own validation case, one for each rank
    "validate::inferer::overlap": 0.0,
}


def arguments(method: str, ranks: int, demo: Path, folder: Path, **more: Any) -> tuple:
    """Arguments of `train_and_record` in float64, for two ranks of batch 1 or one process of batch 2."""
    files, overrides = method_settings(method, demo, folder, STEPS, batch=2 // ranks)
    files = ["train.yaml", *(["multi_gpu_train.yaml"] if ranks > 1 else []), *files[1:]]
    return files, {**overrides, **SMALLER, **more}, True, str(folder / "record_{rank}.pt")


def record(method: str, ranks: int, demo: Path, folder: Path, **more: Any) -> list[dict]:
    """The records of a run, one per rank."""
    folder.mkdir(exist_ok=True)
    given = arguments(method, ranks, demo, folder, **more)
    if ranks > 1:
        run_ranks(ranks, folder / "ranks", train_and_record, *given, join=False)
    else:
        train_and_record(*given)
    return [torch.load(folder / f"record_{r}.pt") for r in range(ranks)]


def assert_same_up_to_rounding(first: dict, second: dict) -> None:
    """Vectors are compared by norm: AdamW divides by tiny gradients, so single entries can differ more."""
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-9)
    assert torch.equal(first["counts"], second["counts"])
    for name in ("gradient", "weights", "memory"):
        assert float((first[name] - second[name]).norm()) <= 1e-7 * float(second[name].norm()), name


QUICK = ("train", "ssnet", "copy_paste", "semiseg_contrastive")
"""Together they have all parts: prototypes, teacher, adversarial passes, selectors, mixed cases, teacher features."""

WITHOUT_MEMORY = ("copy_paste", "mean_teacher", "supervised")
OTHERS = sorted({path.stem for path in (ROOT / "configs/methods").glob("*.yaml")} - set(QUICK))


@pytest.mark.parametrize("method", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_two_ranks_take_the_steps_of_one_process_with_twice_the_batch(method, tiny_demo, tmp_path) -> None:
    (one,) = record(method, 1, tiny_demo, tmp_path / "one")
    first, second = record(method, 2, tiny_demo, tmp_path / "two")
    for step in range(1, STEPS + 1):
        assert_same_up_to_rounding(first["steps"][step], one["steps"][step])
        for name in ("memory", "counts", "weights", "gradient"):
            assert torch.equal(first["steps"][step][name], second["steps"][step][name]), name
    assert first["dice"] == second["dice"] == pytest.approx(one["dice"], abs=1e-6)
    if method not in WITHOUT_MEMORY:
        assert one["steps"][STEPS]["counts"].sum() > 0, "the memory must take part"


def test_steps_in_parts_are_the_same_on_two_ranks(tiny_demo, tmp_path) -> None:
    (one,) = record("train", 1, tiny_demo, tmp_path / "one", accumulation_steps=2)
    first, second = record("train", 2, tiny_demo, tmp_path / "two", accumulation_steps=2)
    (undivided,) = record("train", 1, tiny_demo, tmp_path / "undivided")
    for step in range(1, STEPS + 1):
        assert_same_up_to_rounding(first["steps"][step], one["steps"][step])
        assert torch.equal(first["steps"][step]["weights"], second["steps"][step]["weights"])
    assert one["steps"][1]["loss"] != pytest.approx(undivided["steps"][1]["loss"], rel=1e-6)


def train_until_killed(*given: Any) -> str:
    """The message that a user would read if the run ends with an error."""
    try:
        train_and_record(*given)
    except Exception as error:
        return str(root_user_error(error))
    return "the run was not stopped"


def files_in(folder: Path) -> Sequence[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_killed_rank_stops_the_other_and_the_run_resumes_exactly_on_one_or_two_ranks(tiny_demo, tmp_path) -> None:
    longer = {"max_steps": 4, "val_interval": 4, "save_interval": 2}
    folder = tmp_path / "killed"
    given = arguments("train", 2, tiny_demo, folder, **longer)
    processes = start_ranks(2, tmp_path / "ranks", train_until_killed, *given, join=False)
    while not (folder / "models/checkpoint_00000002.pt").exists():
        assert all(process.is_alive() for process in processes), "the run ended before a rank could be killed"
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[0].join(60)
    assert processes[0].exitcode is not None, "the other rank still waits"
    message, error = torch.load(tmp_path / "ranks/0.pt")
    assert error is None
    assert "--resume true" in message

    (whole,) = record("train", 1, tiny_demo, tmp_path / "whole", **longer)
    shutil.copytree(folder, tmp_path / "again")
    (alone,) = record("train", 1, tiny_demo, folder, **longer, resume=True)
    both = record("train", 2, tiny_demo, tmp_path / "again", **longer, resume=True)
    for resumed in (alone, *both):
        assert 1 not in resumed["steps"], "it started from the beginning"
        assert_same_up_to_rounding(resumed["steps"][4], whole["steps"][4])


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(tiny_demo, tmp_path) -> None:
    """torchrun kills the other ranks as soon as one has ended, so none may end before the first rank has written."""
    folder = tmp_path / "told"
    given = arguments("train", 2, tiny_demo, folder, max_steps=200, val_interval=200, save_interval=2)
    processes = start_ranks(2, tmp_path / "ranks", train_and_record, *given, join=False)
    while not (folder / "models/checkpoint_00000002.pt").exists():
        assert all(process.is_alive() for process in processes), "the run ended before a rank could be told"
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    for rank in range(2):
        _, error = torch.load(tmp_path / f"ranks/{rank}.pt")
        assert "SystemExit: 143" in error
    assert not list((folder / "models").glob(".*"))
    content, path = newest_checkpoint(folder / "models")
    assert path == max((folder / "models").glob("checkpoint_*.pt"))
    assert 2 <= content["run"]["step"] < 200


def test_only_the_first_rank_writes_and_reads_files(tiny_demo, tmp_path) -> None:
    """The second rank has a folder of its own, as on a node without a shared disk.

    Nothing is written there, and a resume broadcasts what the first rank read. Batch norm is used because only this
    exchange keeps its statistics equal.
    """
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    run_ranks(2, tmp_path / "a", train_in_own_folder, tiny_demo, folders, {"max_steps": 2}, join=False)
    written = [name.split("/")[-1] for name in files_in(tmp_path / "first")]
    assert {"model.pt", "model_best.pt", "checkpoint_00000002.pt"} <= set(written)
    assert len([name for name in written if name.startswith("events.")]) == 1
    assert not (tmp_path / "second").exists()
    longer = {"max_steps": 3, "resume": True}
    first, second = run_ranks(2, tmp_path / "b", train_in_own_folder, tiny_demo, folders, longer, join=False)
    assert list(first) == list(second) == [3]
    assert torch.equal(first[3]["weights"], second[3]["weights"])


def train_in_own_folder(demo: Path, folders: Sequence[str], more: dict[str, Any]) -> dict[int, dict]:
    """The steps that this rank recorded, with outputs in a folder of its own."""
    own = Path(folders[int(os.environ["RANK"])])
    target = own.with_name(f"{own.name}.pt")
    files, overrides, _, _ = arguments("prototype", 2, demo, own, **{**more, "norm": "batch"})
    train_and_record(files, overrides, False, str(target) + "{rank}")
    return torch.load(f"{target}{os.environ['RANK']}")["steps"]


def test_every_rank_refuses_an_unfinished_run_with_the_same_message(tiny_demo, tmp_path) -> None:
    (tmp_path / "run/models").mkdir(parents=True)
    torch.save({"run": {"step": 2, "finished": False}}, tmp_path / "run/models/checkpoint_00000002.pt")
    given = arguments("train", 2, tiny_demo, tmp_path / "run")
    first, second = run_ranks(2, tmp_path / "ranks", train_until_killed, *given, join=False)
    assert first == second
    assert "--resume true" in first
