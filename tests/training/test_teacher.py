# SPDX-License-Identifier: Apache-2.0
"""The teacher is the moving average of the student, checked by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from scripts.networks.vnet import VNet
from scripts.training.teacher import Teacher, TeacherUpdater


class Number(nn.Module):
    """A network of one weight and one buffer."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        return x * self.weight


def set_to(network, value):
    with torch.no_grad():
        network.weight.fill_(value)
        network.seen += 1


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # The first update copies the student; the next decays are (1 + n) / (10 + n) = 2/11 and 3/12 of `decay`.
        (0.99, [5.0, 0.18 * 5 + 0.82 * 9, 0.2475 * (0.18 * 5 + 0.82 * 9) + 0.7525 * 1]),
        (0.22, [5.0, 0.04 * 5 + 0.96 * 9, 0.055 * (0.04 * 5 + 0.96 * 9) + 0.945 * 1]),
        (0.0, [5.0, 9.0, 1.0]),
    ],
)
def test_average_over_three_updates(decay, expected):
    student = Number(100.0)
    teacher = Teacher(student, decay)
    assert teacher.module.weight.item() == 100.0
    for value, average in zip((5.0, 9.0, 1.0), expected, strict=True):
        set_to(student, value)
        teacher.update_parameters(student)
        assert teacher.module.weight.item() == pytest.approx(average, rel=1e-6)
        assert student.weight.item() == value


@pytest.mark.parametrize("steps", [8, 40])
def test_decay_counts_in_short_runs(steps):
    """The student's weight is the number of its step; a longer memory lags further behind."""
    lags = []
    for decay in (0.5, 0.9, 0.99, 0.999):
        student = Number(0.0)
        teacher = Teacher(student, decay)
        for step in range(1, steps + 1):
            set_to(student, float(step))
            teacher.update_parameters(student)
        lags.append(steps - teacher.module.weight.item())
    assert all(shorter < longer for shorter, longer in pairwise(lags))
    assert lags[-1] < steps / 5  # and nothing keeps the untrained weights


def test_decay_of_one_or_less_than_zero_is_refused():
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"decay.*{decay}"):
            Teacher(Number(0.0), decay)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", None])
def test_buffers_follow_the_student_and_weights_lag_behind(norm):
    torch.manual_seed(0)
    student = VNet(base_filters=1, norm=norm)
    teacher = Teacher(student, 0.5)
    teacher.update_parameters(student)
    student(torch.randn(2, 1, 16, 32, 16))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    before = {key: value.clone() for key, value in teacher.module.named_parameters()}
    teacher.update_parameters(student)
    buffers, own = dict(student.named_buffers()), dict(teacher.module.named_buffers())
    assert bool(buffers) == (norm == "batch")
    for key, value in buffers.items():
        assert torch.equal(own[key], value) and own[key].dtype == value.dtype
        if key.endswith("num_batches_tracked"):
            assert own[key].dtype == torch.int64 and own[key].item() == 1
    for key, value in teacher.module.named_parameters():
        torch.testing.assert_close(value.data, before[key] + 10 / 11, atol=1e-6, rtol=1e-5)


def test_keys_are_those_of_the_network_and_nothing_is_shared():
    student = VNet(base_filters=1)
    teacher = Teacher(student)
    assert list(teacher.module.state_dict()) == list(student.state_dict())
    storages = {value.data_ptr() for value in student.state_dict().values()}
    assert not storages & {value.data_ptr() for value in teacher.module.state_dict().values()}


def test_teacher_has_no_gradient():
    student = Number(2.0)
    teacher = Teacher(student)
    teacher.update_parameters(student)
    assert all(not p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.ones(1)).requires_grad
    assert student.weight.requires_grad


def test_a_loaded_teacher_continues_like_the_saved_one():
    student = Number(100.0)
    teacher = Teacher(student)
    for value in (5.0, 9.0):
        set_to(student, value)
        teacher.update_parameters(student)
    restored = Teacher(Number(0.0))
    restored.load_state_dict(teacher.state_dict())
    set_to(student, 1.0)
    for one in (teacher, restored):
        one.update_parameters(student)
        assert one.module.weight.item() == pytest.approx(0.2475 * (0.18 * 5 + 0.82 * 9) + 0.7525, rel=1e-6)


def test_updater_acts_once_when_the_model_update_is_complete():
    student = Number(100.0)
    teacher = Teacher(student)

    def step(engine, batch):
        set_to(student, batch)
        weights.append(teacher.module.weight.item())
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        weights.append(teacher.module.weight.item())

    weights, engine = [], Engine(step)
    engine.register_events(*IterationEvents)
    TeacherUpdater(teacher, student).attach(engine)
    engine.run([5.0, 9.0])
    second = 0.18 * 5 + 0.82 * 9
    assert weights == pytest.approx([100.0, 5.0, 5.0, second], rel=1e-6)
    assert teacher.n_averaged.item() == 2
