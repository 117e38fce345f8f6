# SPDX-License-Identifier: Apache-2.0
"""Resumed runs, in one process. tests/workflows/test_kills.py kills real processes."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from scripts.files import save_atomically
from tests.recorded_runs import differences


def test_a_finished_run_continues_when_max_steps_is_raised(make_workflow, tmp_path) -> None:
    make_workflow("train.yaml", max_steps=2).run()
    longer = make_workflow("train.yaml", max_steps=4, resume=True)
    keys = ("optimizer", "learning_rate", "learning_rate_curve")
    optimizer, rate, curve = (longer.parser.get_parsed_content(key) for key in keys)
    rates = []
    longer.trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    longer.run()
    assert longer.trainer.state.iteration == 4
    assert rates == pytest.approx([rate * curve(2), rate * curve(3)]) and min(rates) > 0
    assert (tmp_path / "models/checkpoint_00000004.pt").exists()


def test_a_worse_model_does_not_overwrite_the_best_after_a_resume(make_workflow, tmp_path) -> None:
    make_workflow("train.yaml", max_steps=2, val_interval=2).run()
    best = tmp_path / "models/model_best.pt"
    state_file = tmp_path / "models/checkpoint_00000002.pt"
    state = torch.load(state_file, weights_only=True)
    state["best"]["best_metric"] = 0.99  # as if an unbeatable model had been found before the stop
    save_atomically(state, state_file)
    before = best.read_bytes()
    make_workflow("train.yaml", max_steps=4, val_interval=2, resume=True).run()
    assert best.read_bytes() == before
    kept = torch.load(tmp_path / "models/checkpoint_00000004.pt", weights_only=True)
    assert kept["best"]["best_metric"] == 0.99


@pytest.mark.parametrize("method", ["prototype_selectors", "semiseg_contrastive", "corn"])
def test_memory_selectors_pool_and_their_optimiser_resume_exactly(method, make_workflow, tmp_path) -> None:
    """The last checkpoint is deleted, so the second run repeats the last two steps from the one before."""
    sure = {
        "prototype_selectors": {"terms::contrast_unlabelled::confidence": 0.0},
        "semiseg_contrastive": {"method_handlers::0::labelled_confidence": 0.0},
        "corn": {},
    }[method]
    overrides = {"max_steps": 4, "save_interval": 2, **sure}
    make_workflow("train.yaml", f"methods/{method}.yaml", **overrides).run()
    last = tmp_path / "models/checkpoint_00000004.pt"
    first = torch.load(last, weights_only=True)
    last.unlink()
    again = make_workflow("train.yaml", f"methods/{method}.yaml", resume=True, **overrides)
    again.run()
    assert differences(first, torch.load(last, weights_only=True)) == []
    before = torch.load(tmp_path / "models/checkpoint_00000002.pt", weights_only=True)
    moved = differences(before, first)
    parts = ["pool.features"] if method == "corn" else ["memory.features", "selectors.feature.1.3.weight"]
    assert any(path.startswith("/teacher/") for path in moved)
    assert all(any(path.endswith(part) for path in moved) for part in parts)
    assert ("extra_optimizer" in first) == (method == "prototype_selectors")


def test_self_training_resumes_exactly_after_its_restart(make_workflow, tmp_path) -> None:
    """The resumed part begins after the restart and draws cases by the stored selection."""
    overrides = {
        "max_steps": 6, "save_interval": 4, "restart": 0.4, "unlabelled_start": 0.5, "learning_rate_curve::warmup": 1,
        "self_training::min_dice": 0,
    }  # fmt: skip
    files = ("train.yaml", "methods/self_training.yaml")
    make_workflow(*files, **overrides).run()
    last = tmp_path / "models/checkpoint_00000006.pt"
    first = torch.load(last, weights_only=True)
    last.unlink()
    again = make_workflow(*files, resume=True, **overrides)
    again.run()
    assert again.trainer.state.iteration == 6
    assert differences(first, torch.load(last, weights_only=True)) == []
    assert (tmp_path / "models/model_labels_only.pt").exists()


def test_only_their_own_optimiser_trains_the_selectors(make_workflow) -> None:
    workflow = make_workflow("train.yaml", "methods/prototype_selectors.yaml", learning_rate=0.02)
    workflow.run()
    network, loss, main, extra, selectors = (
        workflow.parser.get_parsed_content(key)
        for key in ("network", "loss", "optimizer", "extra_optimizer", "selectors")
    )
    held = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (main, extra)]
    assert held[1] == {id(p) for p in selectors.parameters()} and not held[0] & held[1]
    assert held[0] | held[1] == {id(p) for module in (network, loss) for p in module.parameters()}
    assert type(extra) is torch.optim.Adam and extra.param_groups[0]["lr"] == pytest.approx(0.002)
    assert len(extra.state) > 0
