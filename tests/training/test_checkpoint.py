# SPDX-License-Identifier: Apache-2.0
"""A run that was killed and resumed gives the same result as an uninterrupted run.

Here an exception at the start of a step stands for SIGKILL: everything that was not saved is lost.
"""

from __future__ import annotations

import errno
import logging
import re

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts.errors import UserError
from scripts.training.checkpoint import TrainingCheckpoint, newest_checkpoint
from tests.training.toy_run import EPOCH, Run, assert_same, file_names

# ------------------------------------------------------------------ a resumed run equals an uninterrupted one


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
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, interval, killed_at, resumed_from):
    whole = Run(tmp_path / "whole", 7, interval=interval).go()
    Run(tmp_path / "parts", 7, interval=interval, killed_at=killed_at).go_until_killed()
    resumed = Run(tmp_path / "parts", 7, interval=interval, resume=True).go()
    assert whole.steps == [1, 2, 3, 4, 5, 6, 7]
    assert resumed.steps == list(range(resumed_from + 1, 8))
    assert_same(resumed.everything(), whole.everything())
    assert resumed.trainer.state.epoch == whole.trainer.state.epoch
    # Every part of the state has changed, so the comparison means something.
    assert whole.memory.counts.tolist() == [4, 4]
    assert int(whole.teacher.n_averaged) == 7
    assert whole.scheduler.get_last_lr()[0] == pytest.approx(0.05 * 0.8**7)


def test_a_run_killed_twice_and_resumed_with_other_numbers_of_workers_ends_the_same(tmp_path):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 7, workers=1, killed_at=3).go_until_killed()
    Run(tmp_path / "parts", 7, workers=0, resume=True, killed_at=6).go_until_killed()
    resumed = Run(tmp_path / "parts", 7, workers=2, resume=True).go()
    assert resumed.steps == [6, 7]
    assert_same(resumed.everything(), whole.everything())


@pytest.mark.parametrize("first", [3, 4])
def test_a_finished_run_continued_to_more_steps_equals_a_run_of_that_length(tmp_path, first):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", first).go()
    longer = Run(tmp_path / "parts", 7, resume=True).go()
    assert longer.steps == list(range(first + 1, 8))
    assert_same(longer.everything(), whole.everything())


def test_a_resume_may_have_another_epoch_length(tmp_path):
    # configs/train.yaml has epochs of min(max_steps, 100), so a larger max_steps can change their length.
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 2, epoch_length=2).go()
    assert_same(Run(tmp_path / "parts", 7, resume=True, epoch_length=5).go().everything(), whole.everything())


@pytest.mark.parametrize("max_steps", [4, 5, 3])
def test_resuming_a_finished_run_changes_nothing(tmp_path, max_steps):
    before = Run(tmp_path, 5).go().everything()
    files = {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)}
    again = Run(tmp_path, max_steps, resume=True).go()
    assert again.steps == []
    assert_same(again.everything(), before)
    assert {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)} == files


def test_resume_in_an_empty_folder_starts_from_the_beginning(tmp_path):
    assert Run(tmp_path / "new", 2, resume=True).go().steps == [1, 2]


# ------------------------------------------------------------------ damaged, missing and foreign checkpoints


def test_a_truncated_checkpoint_is_skipped_for_the_one_before(tmp_path, caplog):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 7, killed_at=6).go_until_killed()
    newest = tmp_path / "parts" / "checkpoint_00000005.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "TrainingCheckpoint"):
        resumed = Run(tmp_path / "parts", 7, resume=True).go()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "TrainingCheckpoint"]
    assert str(newest) in warning
    assert "\n" not in warning
    assert resumed.steps == [5, 6, 7]
    assert_same(resumed.everything(), whole.everything())


def test_a_resume_without_a_readable_checkpoint_is_refused(tmp_path):
    """Starting over silently would lose the run, although a readable copy may exist elsewhere."""
    for name in ("checkpoint_00000002.pt", "checkpoint_00000004.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Run(tmp_path, 7, resume=True).go()
    assert len(file_names(tmp_path)) == 2


@pytest.mark.parametrize("error", [TypeError(""), AttributeError("no such thing\nat all")])
def test_every_error_of_load_state_dict_names_the_file_and_the_object(tmp_path, error):
    class Foreign:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise error

    run = Run(tmp_path, 3).go()
    path = tmp_path / "checkpoint_00000003.pt"
    torch.save({**torch.load(path, weights_only=True), "network": {}}, path)
    with pytest.raises(UserError, match=r"checkpoint_00000003\.pt .*network") as caught:
        TrainingCheckpoint({**run.objects, "network": Foreign()}, tmp_path, 1, 3, resume=True).begin(
            Engine(lambda *_: None)
        )
    assert "\n" not in str(caught.value)


def test_a_new_run_over_a_finished_one_removes_outdated_files_and_a_resumed_one_does_not(tmp_path):
    best = tmp_path / "model_best.pt"
    run = Run(tmp_path, 3).go()
    for resume, stays in ((True, True), (False, False)):
        best.write_bytes(b"of the finished run")
        engine = Engine(lambda *_: None)
        engine.state.epoch_length = EPOCH
        checkpoint = TrainingCheckpoint(run.objects, tmp_path, 1, 3, resume=resume, outdated=[best])
        checkpoint.begin(engine)
        assert best.exists() and len(list(tmp_path.glob("checkpoint_*.pt"))) > 0  # a run may fail at its first step
        engine.state.iteration, engine.state.max_epochs = 1, 3
        checkpoint.save_if_due(engine)
        assert best.exists() is stays


def test_a_damaged_newer_checkpoint_does_not_displace_the_one_just_saved(tmp_path):
    Run(tmp_path, 9, interval=2, keep=1, killed_at=5).go_until_killed()
    (tmp_path / "checkpoint_00000008.pt").write_bytes(b"damaged")
    Run(tmp_path, 9, interval=2, keep=1, resume=True, killed_at=7).go_until_killed()
    assert Run(tmp_path, 9, interval=2, keep=1, resume=True).go().steps == [7, 8, 9]


def test_a_foreign_file_is_skipped(tmp_path):
    Run(tmp_path, 7, killed_at=3).go_until_killed()
    torch.save([1, 2], tmp_path / "checkpoint_00000009.pt")
    assert Run(tmp_path, 7, resume=True).go().steps[0] == 3


def test_files_with_similar_names_are_kept(tmp_path):
    other = tmp_path / "checkpoint_mine.pt"
    torch.save({"somebody": torch.ones(1)}, other)
    Run(tmp_path, 3).go()
    Run(tmp_path, 3).go()
    assert torch.load(other)["somebody"].item() == 1


def test_a_new_run_over_an_unfinished_one_is_refused_and_removes_nothing(tmp_path):
    Run(tmp_path, 7, killed_at=4).go_until_killed()
    before = file_names(tmp_path)
    with pytest.raises(UserError) as caught:
        Run(tmp_path, 7).go()
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "--resume" in message
    assert file_names(tmp_path) == before


def test_a_new_run_over_a_finished_one_removes_its_checkpoints(tmp_path):
    # Their step numbers are higher: a later resume would take them for checkpoints of the new run.
    Run(tmp_path, 7, interval=2).go()
    Run(tmp_path, 7, interval=2, killed_at=4).go_until_killed()
    assert file_names(tmp_path) == ["checkpoint_00000002.pt"]


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
def test_a_checkpoint_of_another_configuration_names_the_object_that_differs(tmp_path, change, name):
    run = Run(tmp_path, 3).go()
    change(run)
    with pytest.raises(UserError) as caught:
        TrainingCheckpoint(run.objects, tmp_path, 1, 3, resume=True).begin(Engine(lambda *_: None))
    message = str(caught.value)
    assert str(tmp_path / "checkpoint_00000003.pt") in message
    assert name in message
    assert "--ckpt_dir" in message
    assert "\n" not in message


def test_a_tensor_that_does_not_fit_is_named(tmp_path):
    run = Run(tmp_path, 3).go()
    change_width(run)
    with pytest.raises(UserError, match=r"network.*weight"):
        TrainingCheckpoint(run.objects, tmp_path, 1, 3, resume=True).begin(Engine(lambda *_: None))


def test_a_resume_with_other_settings_is_refused_and_names_each_of_them(tmp_path):
    settings = {"labels": ["a", "b"], "patch": (3, 4), "rate": 0.1}
    Run(tmp_path, 7, settings=settings, killed_at=4).go_until_killed()
    assert Run(tmp_path, 4, resume=True, settings={**settings, "patch": [3, 4], "new": 1}).go().steps == [4]
    with pytest.raises(UserError) as caught:
        Run(tmp_path, 7, resume=True, settings={**settings, "labels": ["a", "c"], "rate": 0.2}).go()
    message = str(caught.value)
    for named in ("labels", "['a', 'b']", "['a', 'c']", "rate", "0.1", "0.2"):
        assert named in message
    assert "patch" not in message
    assert "--ckpt_dir" in message


def test_a_rank_dependent_setting_may_change_with_the_number_of_ranks_only(tmp_path, monkeypatch, caplog):
    def checkpoint(settings, resume):
        return TrainingCheckpoint({}, tmp_path, 1, 3, resume, settings=settings, rank_dependent=["rate"])

    engine = Engine(lambda *_: None)
    engine.state.iteration, engine.state.epoch_length = 1, 4
    checkpoint({"rate": 0.1, "seed": 5}, False).save(engine)
    with pytest.raises(UserError, match=r"rate 0\.1 .*0\.2"):
        checkpoint({"rate": 0.2, "seed": 5}, True).begin(engine)
    monkeypatch.setattr("scripts.training.checkpoint.num_ranks", lambda: 2)
    checkpoint({"rate": 0.1, "seed": 5}, True).begin(engine)
    assert "rate" not in caplog.text
    checkpoint({"rate": 0.2, "seed": 5}, True).begin(engine)
    assert "rate" in caplog.text
    with pytest.raises(UserError, match="seed 5") as caught:
        checkpoint({"rate": 0.2, "seed": 6}, True).begin(engine)
    assert "rate" not in str(caught.value)


# ------------------------------------------------------------------ files


def test_a_flipped_bit_that_torch_does_not_notice_is_detected(tmp_path, caplog):
    whole = Run(tmp_path / "whole", 7).go()
    Run(tmp_path / "parts", 7, killed_at=6).go_until_killed()
    newest = tmp_path / "parts/checkpoint_00000005.pt"
    weight = torch.load(newest, weights_only=True)["network"]["0.weight"]
    content = newest.read_bytes()
    place = content.index(weight.numpy().tobytes())
    newest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert not torch.equal(torch.load(newest, weights_only=True)["network"]["0.weight"], weight)
    with caplog.at_level(logging.WARNING, "TrainingCheckpoint"):
        resumed = Run(tmp_path / "parts", 7, resume=True).go()
    assert str(newest) in caplog.text
    assert resumed.steps == [5, 6, 7]
    assert_same(resumed.everything(), whole.everything())


def test_a_changed_byte_or_truncated_file_is_refused_or_loads_unchanged(tmp_path):
    """Bytes between the entries of the archive, and some of their descriptions, do not affect the content."""
    path = tmp_path / "checkpoint_00000001.pt"
    content = {"network": {"weight": torch.arange(7.0), "count": torch.tensor(3)}, "run": {"step": 1, "finished": True}}
    torch.save(content, path)
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 13):
        for damaged in (good[:place], good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :]):
            path.write_bytes(damaged)
            found, _ = newest_checkpoint(tmp_path)
            refused += found is None
            if found is not None:
                assert_same(found, content)
    assert refused > len(good) / 13


def test_unfinished_files_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    removed = {".checkpoint_00000003.pt.99.tmp", ".model.pt.99.tmp"}
    kept = {".checkpoint_mine.tmp", "notes.tmp", "checkpoint_00000003.pt"}
    Run(tmp_path, 3).go()
    for name in (*removed, ".checkpoint_mine.tmp", "notes.tmp"):
        (tmp_path / name).write_text("x")
    Run(tmp_path, 4, resume=True, interval=99, keep=9).go()
    names = set(file_names(tmp_path))
    assert names >= kept
    assert not names & removed


def test_a_full_disk_is_a_user_error_and_keeps_the_earlier_checkpoints(tmp_path, monkeypatch):
    run = Run(tmp_path, 3).go()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    engine = Engine(lambda *_: None)
    engine.state.iteration = 4
    with pytest.raises(UserError, match=r"checkpoint_00000004\.pt .*No space left"):
        TrainingCheckpoint(run.objects, tmp_path, 1, 9).save(engine)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("interval", "keep", "steps"),
    [(1, 1, [7]), (1, 3, [5, 6, 7]), (3, 2, [6, 7]), (3, 9, [3, 6, 7]), (100, 2, [7])],
)
def test_checkpoints_of_every_interval_and_of_the_last_step_are_kept_up_to_keep(tmp_path, interval, keep, steps):
    Run(tmp_path, 7, interval=interval, keep=keep).go()
    assert file_names(tmp_path) == [f"checkpoint_{step:08d}.pt" for step in steps]


def test_a_checkpoint_loads_with_weights_only_and_holds_the_progress_of_the_run(tmp_path):
    run = Run(tmp_path, 3, keep=9).go()
    early, last = (torch.load(tmp_path / f"checkpoint_{n:08d}.pt", weights_only=True) for n in (2, 3))
    assert early["run"] == {"step": 2, "finished": False, "settings": {}, "ranks": 1}
    assert last.pop("run") == {"step": 3, "finished": True, "settings": {}, "ranks": 1}
    assert_same(last, run.everything())


@pytest.mark.parametrize("numbers", [{"interval": 0}, {"interval": 1, "keep": 0}])
def test_an_interval_or_keep_below_one_is_refused(tmp_path, numbers):
    with pytest.raises(UserError, match=r"save_interval|keep_states"):
        TrainingCheckpoint({}, tmp_path, max_steps=3, **numbers)


@pytest.mark.parametrize(("given", "resumes"), [(True, True), ("true", True), (False, False), ("false", False)])
def test_resume_may_be_a_text_as_the_command_line_gives_it(given, resumes, tmp_path) -> None:
    assert TrainingCheckpoint({}, tmp_path, interval=1, max_steps=1, resume=given).resume is resumes
