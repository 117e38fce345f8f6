# SPDX-License-Identifier: Apache-2.0
"""The final weights, and the best weights on validation cases, are saved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanSquaredError, from_engine
from torch import nn

from scripts.training.model_saver import BestModelSaver, FinalModelSaver
from scripts.training.teacher import Teacher


class Scale(nn.Module):
    """One weight and one buffer."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, image):
        return image * self.weight


def validated(saver, *values):
    """Run an engine whose metric is each of the values in turn; the network's weight is the value too."""
    evaluator = Engine(lambda *_: None)

    @evaluator.on(Events.STARTED)
    def measure(engine):
        engine.state.key_metric_name = "val_mean_dice"
        engine.state.metrics["val_mean_dice"] = engine.value

    saver.attach(evaluator)
    for value in values:
        evaluator.value = value
        with torch.no_grad():
            saver.network.weight.fill_(value)
        evaluator.run([0])
    return saver


def saved(path):
    return torch.load(path, weights_only=True)


def test_only_a_validation_better_than_all_before_it_is_saved(tmp_path):
    saver = BestModelSaver(Scale(), tmp_path / "made" / "best.pt")
    for value, best in [(0.25, 0.25), (0.125, 0.25), (0.5, 0.5), (0.375, 0.5)]:
        validated(saver, value)
        assert saved(saver.path)["weight"].item() == best
        assert saver.best_metric == best


def test_an_equal_validation_does_not_replace_the_earlier_model(tmp_path):
    saver = validated(BestModelSaver(Scale(), tmp_path / "best.pt"), 0.5)
    before = saver.path.stat().st_mtime_ns, saver.path.stat().st_ino
    validated(saver, 0.5)
    assert (saver.path.stat().st_mtime_ns, saver.path.stat().st_ino) == before


def test_a_worse_model_does_not_replace_the_best_one_after_a_resume(tmp_path):
    first = validated(BestModelSaver(Scale(), tmp_path / "best.pt"), 0.75)
    resumed = BestModelSaver(Scale(), tmp_path / "best.pt")
    resumed.load_state_dict(first.state_dict())
    assert saved(validated(resumed, 0.5).path)["weight"].item() == 0.75
    assert saved(validated(resumed, 0.875).path)["weight"].item() == 0.875


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_the_first_validation_is_saved_whatever_its_value(tmp_path, first):
    assert saved(validated(BestModelSaver(Scale(), tmp_path / "best.pt"), first).path)["weight"].item() == first


def test_a_nan_metric_is_ignored(tmp_path):
    saver = validated(BestModelSaver(Scale(), tmp_path / "best.pt"), math.nan)
    assert not saver.path.exists()
    validated(saver, 0.25, math.nan)
    assert saved(saver.path)["weight"].item() == 0.25


def test_the_state_loads_with_weights_only(tmp_path):
    for values in ([], [np.float64(0.5)]):
        saver = validated(BestModelSaver(Scale(), tmp_path / "best.pt"), *values)
        torch.save(saver.state_dict(), tmp_path / "state.pt")
        restored = BestModelSaver(Scale(), tmp_path / "best.pt")
        restored.load_state_dict(saved(tmp_path / "state.pt"))
        assert restored.best_metric == (0.5 if values else None)


def test_it_reads_the_key_metric_of_monais_evaluator(tmp_path):
    saver = BestModelSaver(Scale(2.0), tmp_path / "best.pt")
    data = [{"image": torch.ones(1, 2), "label": torch.ones(1, 2) * 5}]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(data, batch_size=1),
        network=saver.network,
        key_val_metric={"error": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[saver],
    ).run()
    assert saver.best_metric == 9.0  # (2 - 5)^2


# ------------------------------------------------------------------ final


def finished(saver, steps, stop_after=None):
    trainer = Engine(lambda *_: None)
    saver.attach(trainer)
    if stop_after is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_after), lambda e: e.terminate())
    trainer.run([0] * steps)


def test_the_final_file_holds_the_keys_and_weights_of_the_averaged_network(tmp_path):
    network = Scale(0.0)
    teacher = Teacher(network, 0.9)
    teacher.update_parameters(network)
    with torch.no_grad():
        network.weight.fill_(1.0)
    teacher.update_parameters(network)  # decay d = 0.9 * (1 + 1) / (10 + 1): d * 0 + (1 - d) * 1
    finished(FinalModelSaver(teacher.module, tmp_path / "made" / "model.pt", 3), 3)
    content = saved(tmp_path / "made" / "model.pt")
    assert list(content) == ["weight", "seen"]
    assert content["weight"].item() == pytest.approx(1 - 0.9 * 2 / 11)
    Scale().load_state_dict(content, strict=True)


def test_a_run_that_ends_early_keeps_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"old": 1}, path)
    finished(FinalModelSaver(Scale(), path, 3), 3, stop_after=2)
    assert saved(path) == {"old": 1}


def test_a_run_that_fails_writes_nothing(tmp_path):
    def fail(engine, batch):
        raise RuntimeError("out of memory")

    trainer = Engine(fail)
    FinalModelSaver(Scale(), tmp_path / "model.pt", 1).attach(trainer)
    trainer.logger.disabled = True
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.run([0])
    assert list(tmp_path.iterdir()) == []


def test_no_temporary_file_is_left(tmp_path):
    finished(FinalModelSaver(Scale(), tmp_path / "model.pt", 2), 2)
    validated(BestModelSaver(Scale(), tmp_path / "best.pt"), 0.5, 0.625)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "model.pt"]
