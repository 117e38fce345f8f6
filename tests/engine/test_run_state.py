# SPDX-License-Identifier: Apache-2.0
"""A run that was killed and resumed ends like one that was not.

The runs below are MONAI's stock trainer with the bundle's own handlers, in the order of configs/train.yaml, on volumes
of 2 x 3 x 4 voxels. "Killed" means an exception at the start of a step: whatever was not saved is lost.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from monai.data import CacheDataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, CopyItemsd, RandGaussianNoised
from torch import nn

from scripts.data.streams import StreamPosition, prepare_two_stream_batch, two_stream_loader
from scripts.engine.gradient_guard import GradientGuard
from scripts.engine.memory_updater import MemoryBankUpdater
from scripts.engine.run_state import RunState, save_atomically
from scripts.engine.step_handlers import StepSeeder, StopAtStep
from scripts.engine.tap_inferer import TapInferer
from scripts.engine.teacher import TeacherUpdater, ema_teacher
from scripts.errors import BundleError
from scripts.prototypes.memory import PrototypeMemory

CONFIG = Path(__file__).parents[2] / "configs" / "train.yaml"
EPOCH = 4


class Killed(Exception):
    """Stands for a SIGKILL."""


class ToyLoss(nn.Module):
    """Cross-entropy, distance to the memory, and a head that only every third step uses."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory
        self.head = nn.Linear(3, 1)
        self.calls = []

    def forward(self, prediction, label):
        logits, features = prediction["logits"], prediction["features"]
        loss = nn.functional.cross_entropy(logits[: len(label)], label[:, 0].long())
        loss = loss + prediction["teacher_logits"].sub(logits[len(label) :]).square().mean()
        for c in range(self.memory.num_classes):
            if len(self.memory.rows(c)) > 0:
                loss = loss + (features.mean(dim=(0, 2, 3, 4)) - self.memory.rows(c)).square().mean()
        if self.memory.features.sum() * 1000 % 3 < 1:
            loss = loss + self.head(features.mean(dim=(0, 2, 3, 4))).square().sum()
        return loss


class Run:
    """A run of the whole machinery, built anew as a new process would."""

    def __init__(
        self, folder, max_steps, resume=False, interval=1, keep=2, workers=0, epoch_length=EPOCH, killed_at=None
    ):
        torch.manual_seed(0)
        image = torch.randn(5, 1, 2, 3, 4, generator=torch.Generator().manual_seed(1))
        noise = RandGaussianNoised("image", prob=0.7, std=0.3)
        labelled = [{"image": x, "label": (x > 0).to(torch.uint8), "case": "l"} for x in image[:2]]
        unlabelled = [{"image": x, "case": "u"} for x in image[2:]]
        loader = two_stream_loader(
            CacheDataset(labelled, Compose([noise]), progress=False),
            CacheDataset(unlabelled, Compose([CopyItemsd("image", names="weak"), noise]), progress=False),
            1,
            1,
            seed=5,
            num_workers=workers,
        )
        self.network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.Dropout(0.3), nn.Conv3d(3, 2, 1))
        self.teacher = ema_teacher(self.network, 0.9)
        self.memory = PrototypeMemory(2, 3, 4, "fifo")
        self.loss = ToyLoss(self.memory)
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), *self.loss.parameters()], lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.8**step)
        self.objects = {
            "network": self.network,
            "teacher": self.teacher,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "lr_scheduler": self.scheduler,
        }
        self.steps = []
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=-(-max_steps // epoch_length),
            epoch_length=epoch_length,
            train_data_loader=loader,
            prepare_batch=prepare_two_stream_batch,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            inferer=TapInferer("0", divisor=1, teacher=self.teacher),
            optim_set_to_none=True,
            decollate=False,
            train_handlers=[
                MemoryBankUpdater(
                    self.memory, source="both", confidence=0.5, only_correct=False, include_background=True
                ),
                StreamPosition(loader),
                StepSeeder(5),
                GradientGuard([self.network, self.loss]),
                TeacherUpdater(self.teacher, self.network),
                LrScheduleHandler(self.scheduler, print_lr=False, epoch_level=False),
                RunState(self.objects, folder, interval, max_steps, resume, keep),
                StopAtStep(max_steps),
            ],
        )
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.steps.append(e.state.iteration))
        if killed_at is not None:
            self.trainer.add_event_handler(Events.ITERATION_STARTED(once=killed_at), self.die)

    def die(self):
        raise Killed

    def go(self):
        self.trainer.run()
        return self

    def go_until_killed(self):
        with pytest.raises(Killed):
            self.trainer.run()
        return self

    def everything(self):
        return {name: item.state_dict() for name, item in self.objects.items()}


def assert_same(a, b, where=""):
    """To the bit, whatever is nested in what."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ killed and resumed equals not killed


@pytest.mark.parametrize(
    ("interval", "killed_at", "resumed_from"),
    [
        (3, 4, 3),  # within the first epoch, which the resumed run then leaves
        (3, 6, 3),  # two steps are lost and done again
        (4, 6, 4),  # resumed exactly on the border between two epochs
        (4, 5, 4),  # and stopped exactly on it
        (5, 7, 5),  # within the second epoch
    ],
)
def test_a_killed_and_resumed_run_ends_like_one_that_was_not(tmp_path, interval, killed_at, resumed_from):
    whole = Run(tmp_path / "whole", 7, interval=interval).go()
    Run(tmp_path / "parts", 7, interval=interval, killed_at=killed_at).go_until_killed()
    resumed = Run(tmp_path / "parts", 7, interval=interval, resume=True).go()
    assert whole.steps == [1, 2, 3, 4, 5, 6, 7]
    assert resumed.steps == list(range(resumed_from + 1, 8))
    assert_same(resumed.everything(), whole.everything())
    assert resumed.trainer.state.epoch == whole.trainer.state.epoch
    # The run is worth comparing: every part of it has moved.
    assert whole.memory.counts.tolist() == [4, 4]
    assert int(whole.teacher.n_averaged) == 7
    assert whole.scheduler.get_last_lr()[0] == pytest.approx(0.05 * 0.8**7)


def test_a_run_killed_twice_with_other_numbers_of_workers_ends_the_same(tmp_path):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 7, workers=1, killed_at=3).go_until_killed()
    Run(tmp_path / "parts", 7, workers=0, resume=True, killed_at=6).go_until_killed()
    resumed = Run(tmp_path / "parts", 7, workers=2, resume=True).go()
    assert resumed.steps == [6, 7]
    assert_same(resumed.everything(), whole.everything())


@pytest.mark.parametrize("first", [3, 4])
def test_a_finished_run_with_a_larger_max_steps_goes_on_like_one_that_was_that_long(tmp_path, first):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", first).go()
    longer = Run(tmp_path / "parts", 7, resume=True).go()
    assert longer.steps == list(range(first + 1, 8))
    assert_same(longer.everything(), whole.everything())


def test_epochs_may_be_cut_differently_on_a_resume(tmp_path):
    # configs/train.yaml has epochs of min(max_steps, 100), so a larger max_steps can change their length.
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 2, epoch_length=2).go()
    assert_same(Run(tmp_path / "parts", 7, resume=True, epoch_length=5).go().everything(), whole.everything())


@pytest.mark.parametrize("max_steps", [4, 5, 3])
def test_a_finished_run_that_is_resumed_does_no_step_and_changes_nothing(tmp_path, max_steps):
    before = Run(tmp_path, 5).go().everything()
    files = {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)}
    again = Run(tmp_path, max_steps, resume=True).go()
    assert again.steps == []
    assert_same(again.everything(), before)
    assert {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)} == files


def test_resume_in_an_empty_folder_starts_from_the_beginning(tmp_path):
    assert Run(tmp_path / "new", 2, resume=True).go().steps == [1, 2]


# ------------------------------------------------------------------ the order in the config


def handler_names(node):
    """Class names in a list of handlers, in their order, those inside groups too."""
    if isinstance(node, list):
        return [name for item in node for name in handler_names(item)]
    if not isinstance(node, dict):
        return []
    return [node["_target_"].split(".")[-1], *handler_names(node.get("handlers", []))]


def test_the_training_config_saves_when_everything_else_of_a_step_is_done():
    # Handlers of one event run in the order of the list: a state saved before the schedule has moved lags one step.
    names = handler_names(yaml.safe_load(CONFIG.read_text())["train"]["handlers"])
    for before in ("ValidationHandler", "LrScheduleHandler"):
        assert names.index(before) < names.index("RunState"), before
    assert names.index("RunState") < names.index("StopAtStep")


def test_the_training_config_gives_unused_parameters_no_gradient():
    # Zeros instead of none would let Adam move parameters that a step does not use, but only until a resume.
    assert yaml.safe_load(CONFIG.read_text())["train"]["trainer"]["optim_set_to_none"] is True


# ------------------------------------------------------------------ damaged, missing and foreign states


def test_a_truncated_state_is_skipped_for_the_one_before(tmp_path, caplog):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 7, killed_at=6).go_until_killed()
    newest = tmp_path / "parts" / "state_00000005.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "RunState"):
        resumed = Run(tmp_path / "parts", 7, resume=True).go()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "RunState"]
    assert str(newest) in warning
    assert "\n" not in warning
    assert resumed.steps == [5, 6, 7]
    assert_same(resumed.everything(), whole.everything())


def test_a_resume_where_no_state_can_be_read_is_refused(tmp_path):
    """To start over in silence would lose the run: a good copy may exist."""
    for name in ("state_00000002.pt", "state_00000004.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BundleError, match=r"No state in .* can be read"):
        Run(tmp_path, 7, resume=True).go()
    assert len(file_names(tmp_path)) == 2


@pytest.mark.parametrize("error", [TypeError(""), AttributeError("no such thing\nat all")])
def test_any_way_in_which_a_state_does_not_fit_is_one_sentence(tmp_path, error):
    class Foreign:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise error

    run = Run(tmp_path, 3).go()
    state = torch.load(tmp_path / "state_00000003.pt", weights_only=True)
    torch.save({**state, "network": {}}, tmp_path / "state_00000003.pt")
    with pytest.raises(BundleError, match=r"\(network: (TypeError|no such thing)\)") as caught:
        RunState({**run.objects, "network": Foreign()}, tmp_path, 1, 3, resume=True).begin(Engine(lambda *_: None))
    assert "\n" not in str(caught.value)


def test_a_fresh_run_over_a_finished_one_removes_what_it_would_not_overwrite_and_a_resumed_one_does_not(tmp_path):
    best = tmp_path / "model_best.pt"
    run = Run(tmp_path, 3).go()
    for resume, stays in ((True, True), (False, False)):
        best.write_bytes(b"of the finished run")
        engine = Engine(lambda *_: None)
        engine.state.epoch_length = EPOCH
        RunState(run.objects, tmp_path, 1, 3, resume=resume, outdated=[best]).begin(engine)
        assert best.exists() is stays


def test_a_damaged_newer_state_does_not_push_out_the_one_just_saved(tmp_path):
    Run(tmp_path, 9, interval=2, keep=1, killed_at=5).go_until_killed()
    (tmp_path / "state_00000008.pt").write_bytes(b"damaged")
    Run(tmp_path, 9, interval=2, keep=1, resume=True, killed_at=7).go_until_killed()
    assert Run(tmp_path, 9, interval=2, keep=1, resume=True).go().steps == [7, 8, 9]


def test_a_file_that_is_no_state_is_skipped(tmp_path):
    Run(tmp_path, 7, killed_at=3).go_until_killed()
    torch.save([1, 2], tmp_path / "state_00000009.pt")
    assert Run(tmp_path, 7, resume=True).go().steps[0] == 3


def test_other_files_that_begin_with_state_are_left_alone(tmp_path):
    other = tmp_path / "state_dict.pt"
    torch.save({"somebody": torch.ones(1)}, other)
    Run(tmp_path, 3).go()
    Run(tmp_path, 3).go()
    assert torch.load(other)["somebody"].item() == 1


def test_a_fresh_run_over_an_unfinished_one_is_refused_and_loses_nothing(tmp_path):
    Run(tmp_path, 7, killed_at=4).go_until_killed()
    before = file_names(tmp_path)
    with pytest.raises(BundleError) as caught:
        Run(tmp_path, 7).go()
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "stopped at step 3" in message
    assert "--resume true" in message
    assert file_names(tmp_path) == before


def test_a_fresh_run_over_a_finished_one_clears_it(tmp_path):
    # Its states are of higher steps: left there, a later resume would take them for the new run's.
    Run(tmp_path, 7, interval=2).go()
    Run(tmp_path, 7, interval=2, killed_at=4).go_until_killed()
    assert file_names(tmp_path) == ["state_00000002.pt"]


def change_width(run):
    run.objects["network"] = nn.Conv3d(1, 9, 1)


def change_parameters(run):
    run.objects["optimizer"] = torch.optim.AdamW(run.network.parameters())


def add_an_object(run):
    run.objects["second_teacher"] = run.teacher


def change_scheduler(run):
    run.objects["lr_scheduler"] = torch.optim.lr_scheduler.SequentialLR(
        run.optimizer, [torch.optim.lr_scheduler.ConstantLR(run.optimizer)], milestones=[]
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_width, "network"),
        (change_parameters, "optimizer"),
        (add_an_object, "second_teacher"),
        (change_scheduler, "lr_scheduler"),
    ],
)
def test_a_state_of_another_configuration_is_refused_in_a_sentence(tmp_path, change, name):
    run = Run(tmp_path, 3).go()
    change(run)
    with pytest.raises(BundleError) as caught:
        RunState(run.objects, tmp_path, 1, 3, resume=True).begin(Engine(lambda *_: None))
    message = str(caught.value)
    assert str(tmp_path / "state_00000003.pt") in message
    assert f"({name}: " in message
    assert "--ckpt_dir" in message
    assert "\n" not in message


# ------------------------------------------------------------------ what lies in the folder


@pytest.mark.parametrize(
    ("interval", "keep", "steps"),
    [(1, 1, [7]), (1, 3, [5, 6, 7]), (3, 2, [6, 7]), (3, 9, [3, 6, 7]), (100, 2, [7])],
)
def test_states_of_every_interval_and_of_the_last_step_stay_up_to_keep(tmp_path, interval, keep, steps):
    Run(tmp_path, 7, interval=interval, keep=keep).go()
    assert file_names(tmp_path) == [f"state_{step:08d}.pt" for step in steps]


def test_states_load_with_weights_only_and_say_where_the_run_stands(tmp_path):
    run = Run(tmp_path, 3, keep=9).go()
    early, last = (torch.load(tmp_path / f"state_{n:08d}.pt", weights_only=True) for n in (2, 3))
    assert early["run"] == {"step": 2, "finished": False, "ranks": 1}
    assert last.pop("run") == {"step": 3, "finished": True, "ranks": 1}
    assert_same(last, run.everything())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "made" / "here.pt"
    save_atomically({"value": 1}, path)

    class Unpicklable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_atomically({"big": torch.ones(9), "bad": Unpicklable()}, path)
    assert torch.load(path) == {"value": 1}
    assert file_names(path.parent) == ["here.pt"]


@pytest.mark.parametrize("numbers", [{"interval": 0}, {"interval": 1, "keep": 0}])
def test_an_interval_or_keep_below_one_is_refused(tmp_path, numbers):
    with pytest.raises(BundleError, match="at least 1"):
        RunState({}, tmp_path, max_steps=3, **numbers)
