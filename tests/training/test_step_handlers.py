# SPDX-License-Identifier: Apache-2.0
"""The handlers of every step: seeding, step number and stop."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from scripts.losses.base import LossTerm, TrainingBatch, WeightedLoss
from scripts.losses.schedules import RampUp
from scripts.prototypes.memory import PrototypeMemory
from scripts.training.step_handlers import CourseCurves, LossStep, MemoryEmbeddings, StepSeeder, StopAtStep


def resumed_at(engine, step, epoch_length):
    @engine.on(Events.STARTED)
    def restore():
        engine.state.iteration, engine.state.epoch = step, step // epoch_length


def draws(seed=0, start=0, steps=6, disturb=0):
    """What each step draws from the three global generators."""
    drawn = {}

    def step(engine, batch):
        drawn[engine.state.iteration] = (random.random(), float(np.random.rand()), float(torch.rand(1)))

    engine = Engine(step)
    StepSeeder(seed).attach(engine)
    resumed_at(engine, start, 3)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: (torch.rand(disturb), random.random()))
    engine.run([0] * 3, max_epochs=steps // 3)
    return drawn


def test_the_random_numbers_of_a_step_depend_on_seed_and_step_only():
    whole = draws()
    assert list(whole) == [1, 2, 3, 4, 5, 6]
    assert draws(disturb=7) == whole
    for start in (2, 3, 5):
        assert draws(start=start) == {step: value for step, value in whole.items() if step > start}


def test_steps_and_seeds_draw_different_numbers_from_every_generator():
    runs = [draws(), draws(seed=1)]
    for generator in range(3):
        values = [value[generator] for run in runs for value in run.values()]
        assert len(set(values)) == 12


class One(LossTerm):
    def forward(self, batch):
        return torch.ones(())


@pytest.mark.parametrize("start", [0, 2])
def test_terms_know_their_step_before_it_begins_counted_from_one(start):
    terms = WeightedLoss({"one": One()}, max_steps=6)
    seen = []
    engine = Engine(lambda *_: seen.append(terms.step))
    LossStep(terms).attach(engine)
    resumed_at(engine, start, 3)
    engine.run([0] * 3, max_epochs=2)
    assert seen == [1, 2, 3, 4, 5, 6][start:]


@pytest.mark.parametrize("max_steps", [1, 3, 4, 5])
def test_a_run_stops_after_max_steps_also_within_an_epoch(max_steps):
    steps = []
    engine = Engine(lambda e, _: steps.append(e.state.iteration))
    StopAtStep(max_steps).attach(engine)
    engine.run([0] * 3, max_epochs=9)
    assert steps == list(range(1, max_steps + 1))


@pytest.mark.parametrize(("done", "steps"), [(3, [4, 5]), (5, []), (8, [])])
def test_a_resumed_run_does_only_the_remaining_steps(done, steps):
    seen, completed = [], []
    engine = Engine(lambda e, _: seen.append(e.state.iteration))
    resumed_at(engine, done, 3)
    StopAtStep(5).attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: completed.append(True))
    engine.run([0] * 3, max_epochs=9)
    assert seen == steps
    assert completed == [True]  # so that the final model is always written


def test_handlers_after_the_stop_still_see_the_last_step():
    seen = []
    engine = Engine(lambda *_: None)
    StopAtStep(2).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.iteration))
    engine.run([0] * 3)
    assert seen == [1, 2]


def test_dropout_of_a_step_repeats():
    layer, outputs = nn.Dropout(0.5), {}
    for start in (0, 1):
        engine = Engine(lambda e, _, start=start: outputs.update({(start, e.state.iteration): layer(torch.ones(64))}))
        StepSeeder(3).attach(engine)
        resumed_at(engine, start, 3)
        engine.run([0] * 3)
    assert torch.equal(outputs[0, 2], outputs[1, 2])
    assert not torch.equal(outputs[0, 2], outputs[0, 3])


class Recorded:
    """What a TensorBoard writer was told."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag, value, step):
        self.points.setdefault(tag, []).append((step, float(value)))


def test_curves_of_weights_rate_time_and_memory_have_a_point_per_interval():
    memory = PrototypeMemory(num_classes=3, feature_dim=2, elements_per_class=4)
    term = One(weight=RampUp(2.0, start=0.5, end=0.5))
    term.memory = memory
    loss, parameter = WeightedLoss({"late": term, "fixed": One(weight=0.5)}, max_steps=6), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.25)
    logits = torch.zeros(2, 2, 1, 1, 4)  # a labelled and an unlabelled case
    logits[1, 1] = torch.tensor([0.0, 2.9, 3.0, 9.0])  # probabilities 0.5, 0.948, 0.953, 1.0
    batch = TrainingBatch(logits, logits, torch.zeros(1, 1, 1, 4, dtype=torch.int64), logits, forward_pass=None)
    engine, writer = Engine(lambda engine, _: [{"pred": batch}]), Recorded()
    LossStep(loss).attach(engine)
    CourseCurves(writer, loss, optimizer, interval=2).attach(engine)
    engine.run([0] * 3, max_epochs=2)
    assert writer.points["Weight/late"] == [(2, 0.0), (4, 2.0), (6, 2.0)]
    assert writer.points["Weight/fixed"] == [(2, 0.5), (4, 0.5), (6, 0.5)]
    assert writer.points["Rate/learning_rate"] == [(2, 0.25), (4, 0.25), (6, 0.25)]
    assert [step for step, seconds in writer.points["Time/step"] if seconds > 0] == [2, 4, 6]
    assert writer.points["Memory/2"] == [(2, 0.0), (4, 0.0), (6, 0.0)]
    assert writer.points["Confident/unlabelled"] == [(2, 0.5), (4, 0.5), (6, 0.5)]
    weights, memories = {"Weight/late", "Weight/fixed"}, {f"Memory/{c}" for c in range(3)}
    assert set(writer.points) == weights | memories | {"Confident/unlabelled", "Rate/learning_rate", "Time/step"}


def test_a_second_run_replaces_the_memory_of_the_first_without_a_word(tmp_path, capsys):
    memory = PrototypeMemory(num_classes=2, feature_dim=2, elements_per_class=4)
    updater = SimpleNamespace(memory=memory, sample=lambda *_: {"labelled voxel": {1: torch.ones(2, 2)}})
    for _ in range(2):
        engine = Engine(lambda *_: [{"pred": None}])
        with SummaryWriter(str(tmp_path)) as writer:
            MemoryEmbeddings(writer, updater).attach(engine)
            engine.run([0])
    assert len((tmp_path / "00001/memory/tensors.tsv").read_text().splitlines()) == 2
    assert capsys.readouterr().out == ""
