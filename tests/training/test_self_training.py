# SPDX-License-Identifier: Apache-2.0
"""Self-training: what is stored, which cases are used, and which rounds are left out."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.transforms import LabelOnImaged, LabelsToClassesd, StoredLabels, StoredLabelsd
from scripts.errors import UserError
from scripts.images.monai import VolumeReader
from scripts.training.self_training import SelfTraining, agreement, lower_fence, other_contrast
from scripts.training.teacher import Teacher
from tests.rank_processes import run_ranks
from tests.training.tiny_self_training import SHAPE, Run, labelled_case, unlabelled_case, volume


def test_labels_with_ignored_voxels_do_not_say_that_a_structure_is_in_several_parts(tmp_path):
    sparse = labelled_case((2, 8))
    sparse["label"] = sparse["label"].to(torch.int8)
    sparse["label"][..., 4:6] = -1  # the part in between
    run = Run(tmp_path, [labelled_case((2, 8)), sparse], [unlabelled_case("u", (1, 2), (5, 9))])
    run.label()
    assert sorted(set(np.nonzero(run.stored("u"))[2])) == [5, 6, 7, 8]


def test_pseudo_labels_are_the_teachers_classes_and_single_structures_keep_their_largest_component(tmp_path):
    cases = [unlabelled_case("a", (2, 6)), unlabelled_case("b", (0, 2), (4, 9))]
    one = Run(tmp_path / "one", [labelled_case((1, 4))], cases)
    one.label()
    assert np.array_equal(one.stored("a"), (volume((2, 6)) > 0)[0].numpy())
    assert np.array_equal(one.stored("b"), (volume((4, 9)) > 0)[0].numpy())
    several = Run(tmp_path / "several", [labelled_case((1, 4)), labelled_case((0, 2), (5, 9))], cases)
    several.label()
    assert np.array_equal(several.stored("b"), (volume((0, 2), (4, 9)) > 0)[0].numpy())


def stored_by_ranks(folder):
    cases = [unlabelled_case(f"c{i}", (2, 3 + i)) for i in range(3)]
    run = Run(folder, [labelled_case((1, 4))], cases)
    run.label()
    return (run.folder / "stability.csv").read_text(), [int(run.stored(f"c{i}").sum()) for i in range(3)]


def test_ranks_share_the_cases_and_each_reads_all_of_them(tmp_path):
    expected = stored_by_ranks(tmp_path / "one")
    assert run_ranks(2, tmp_path / "two", stored_by_ranks, tmp_path / "shared") == [expected] * 2
    assert not list((tmp_path / "shared/round_1").glob("stability.csv.*"))


def test_the_teacher_labels_not_the_student(tmp_path):
    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))])
    with torch.no_grad():
        run.network.scale.fill_(-1.0)
    run.label()
    assert np.array_equal(run.stored("a"), (volume((2, 6)) > 0)[0].numpy())


def test_training_goes_on_from_where_it_is_and_the_teachers_weights_are_kept(tmp_path):
    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))])
    for _ in range(3):
        run.network.scale.square().backward()
        run.optimizer.step()
        run.teacher.update_parameters(run.network)
    trained, averaged = float(run.network.scale), float(run.teacher.module.scale)
    assert len({1.0, trained, averaged}) == 3
    run.label()
    assert float(run.network.scale) == trained and run.optimizer.state
    assert float(torch.load(tmp_path / "labels_only.pt")["scale"]) == averaged


def test_more_steps_of_a_finished_run_keep_the_weights_of_the_labels_alone_and_a_new_run_does_not(tmp_path):
    labels_only = tmp_path / "labels_only.pt"
    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))])
    run.label()
    first = torch.load(labels_only)["scale"]
    longer = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))], start=20)
    longer.teacher.module.scale.data.fill_(7.0)  # trained with pseudo-labels
    longer.engine.fire_event(Events.EPOCH_STARTED)
    longer.label()
    assert torch.load(labels_only)["scale"] == first
    new = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))], start=0)
    new.engine.fire_event(Events.EPOCH_STARTED)
    assert not labels_only.exists()


def test_an_unstable_case_is_never_drawn_and_a_resumed_run_reads_the_selection(tmp_path):
    cases = [unlabelled_case(f"c{i}", (2, 6)) for i in range(8)]
    cases[3]["image"][:] = -0.001  # another brightness turns it into class 1
    run = Run(tmp_path, [labelled_case((1, 4))], cases)
    assert run.drawn() == set(range(8))
    run.label()
    with (run.folder / "stability.csv").open(newline="") as file:
        stability = {row["case"]: float(row["stability"]) for row in csv.DictReader(file)}
    assert stability == {f"c{i}": 0.0 if i == 3 else 1.0 for i in range(8)}
    assert run.drawn() == set(range(8)) - {3}
    later = Run(tmp_path, [labelled_case((1, 4))], cases)
    later.handler.resume(later.engine)
    assert later.drawn() == set(range(8))  # at the step of labelling itself nothing is selected yet
    later.engine.state.iteration += 1
    later.handler.resume(later.engine)
    assert later.drawn() == set(range(8)) - {3}
    tolerant = Run(tmp_path / "tolerant", [labelled_case((1, 4))], cases, fence="inf")
    tolerant.label()
    assert tolerant.drawn() == set(range(8))


def test_cases_are_labelled_once_after_the_given_number_of_steps_and_unlabelled_cases_after_it(tmp_path):
    seen = []

    def step(engine, batch):
        seen.append((engine.state.iteration, (run.folder / "stability.csv").exists(), batch["case"]))

    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))], start=3, step=step)
    run.engine.run(run.loader, max_epochs=1, epoch_length=6)
    alone, both = ["l"], ["l", "a"]
    assert seen == [(i, i > 3, both if i > 4 else alone) for i in range(1, 7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_round_uses_the_labels_of_its_own_teacher_also_after_a_resume(tmp_path, workers):
    seen = {}
    case = unlabelled_case("a", (2, 6))
    case["image"][..., 6:8] = -0.2

    def run_of(last, step=lambda *_: None):
        run = Run(tmp_path, [labelled_case((1, 4))], [case], 2, step, 1, workers, rounds=3)
        run.loader.dataset.datasets["unlabelled"].transform = Compose([StoredLabelsd("stored", run.handler.stored)])
        run.engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "iteration", last))
        return run

    def note(engine, batch):
        seen[engine.state.iteration] = int(batch["stored"].sum()) if "stored" in batch else None
        if engine.state.iteration == 8:
            run.teacher.module.threshold.data.fill_(-0.5)  # from then on it finds more of the structure

    run = run_of(0, note)
    run.engine.run(run.loader, max_epochs=1, epoch_length=20)
    small, large = 4 * 12, 6 * 12  # voxels of the structure as the first and the second teacher see it
    # Rounds start after steps 2, 8 and 14. The batch of the step in which cases are labelled was drawn before.
    assert seen == {i: None if i <= 3 else small if i <= 9 else large for i in range(1, 21)}
    seen.clear()
    assert (tmp_path / "round_2/a.npz").exists()
    run = run_of(5, note)
    run.loader.batches.start = 5
    run.engine.run(run.loader, max_epochs=1, epoch_length=8)
    assert seen[6] == small, "the labels of the later rounds are there, and not read"


def test_a_round_is_left_out_until_the_teacher_finds_the_structures_of_the_labelled_cases(tmp_path, caplog):
    seen = []

    def run_of(last, step=lambda *_: None):
        run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a", (2, 6))], 2, step, rounds=2)
        run.engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "iteration", last))
        return run

    def note(engine, batch):
        seen.append("a" in batch["case"])
        run.teacher.module.threshold.data.fill_(2.0 if engine.state.iteration < 8 else 0.0)

    run = run_of(0, note)
    run.engine.run(run.loader, max_epochs=1, epoch_length=20)
    # Rounds start after steps 2 and 11. The batch of the step in which cases are labelled was drawn before.
    assert seen == [False] * 12 + [True] * 8
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "foreground (0.00)" in told and "step 11" in told and "--max_steps" in told
    seen.clear()
    run = run_of(5, note)
    run.loader.batches.start = 5
    run.engine.run(run.loader, max_epochs=1, epoch_length=4)
    assert not any(seen), "a resumed run leaves the round out, too"


@pytest.mark.parametrize(("last", "min_dice", "used"), [(3, 0.3, True), (2, 0.3, False), (2, 0.1, True)])
def test_how_much_of_a_structure_counts_as_learned(tmp_path, last, min_dice, used):
    case = labelled_case((1, 12))  # the teacher finds eleven slices; of two the Dice is 4 / 13, of one 2 / 12
    case["label"] = (volume((1, last)) > 0).to(torch.uint8)
    run = Run(tmp_path, [case], [unlabelled_case("a", (2, 6))], min_dice=min_dice)
    run.label()
    drawn = [stream for i in range(7, 20) for stream, *_ in run.loader.batches.batch(i)]
    assert ("unlabelled" in drawn) == used


def test_less_than_one_round_is_refused(tmp_path):
    with pytest.raises(UserError, match="rounds"):
        Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a")], rounds=0)


def test_batches_that_workers_have_drawn_ahead_are_drawn_again_from_the_selected_cases(tmp_path):
    cases = [unlabelled_case(f"c{i}", (2, 6)) for i in range(8)]
    cases[3]["image"][:] = -0.001  # another brightness turns it into class 1

    def drawn(workers):
        names = []
        run = Run(
            tmp_path / str(workers),
            [labelled_case((1, 4))],
            cases,
            start=1,
            step=lambda _, batch: names.append(batch["case"]),
            batch_unlabelled=2,
            workers=workers,
        )
        run.engine.run(run.loader, max_epochs=1, epoch_length=20)
        return names

    seen = drawn(workers=2)
    assert seen == drawn(workers=0) and len(seen) == 20
    assert "c3" not in {name for names in seen for name in names}


def test_a_run_without_unlabelled_cases_goes_on(tmp_path):
    run = Run(tmp_path / "none", [labelled_case((1, 4))], [])
    run.label()
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_without_its_pseudo_labels_is_refused(tmp_path):
    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case("a")])
    run.engine.state.iteration += 1
    with pytest.raises(UserError, match=r"stability\.csv"):
        run.handler.resume(run.engine)


def test_pseudo_labels_of_the_same_teacher_are_not_made_again(tmp_path):
    cases = [unlabelled_case(f"c{i}", (2, 6)) for i in range(3)]
    first = Run(tmp_path, [labelled_case((1, 4))], cases)
    first.label()
    (first.folder / "c1.npz").unlink()  # as if the run had been killed
    marked = np.load(first.folder / "c0.npz")
    np.savez(first.folder / "c0.npz", **{**marked, "labels": np.full(SHAPE, 7, np.uint8)})
    again = Run(tmp_path, [labelled_case((1, 4))], cases)
    again.label()
    assert (again.stored("c0") == 7).all() and (again.stored("c1") == again.stored("c2")).all()
    other = Run(tmp_path, [labelled_case((1, 4))], cases)
    other.teacher.module.scale.data += 1.0
    other.label()
    assert (other.stored("c0") == other.stored("c2")).all()


def test_a_missing_pseudo_label_is_named(tmp_path):
    cases = [unlabelled_case(f"c{i}", (2, 6)) for i in range(2)]
    run = Run(tmp_path, [labelled_case((1, 4))], cases)
    run.label()
    (run.folder / "c1.npz").unlink()
    later = Run(tmp_path, [labelled_case((1, 4))], cases)
    later.engine.state.iteration += 1
    with pytest.raises(UserError, match=r"c1\.npz"):
        later.handler.resume(later.engine)


@pytest.mark.parametrize("damage", ["empty", "cut short", "other bytes"])
def test_a_damaged_pseudo_label_is_made_anew_while_they_are_made_and_named_in_training(tmp_path, caplog, damage):
    run = Run(tmp_path, [labelled_case((1, 4))], [unlabelled_case(f"c{i}", (2, 6)) for i in range(2)])
    run.label()
    file, whole = run.folder / "c1.npz", run.stored("c1")
    content = file.read_bytes()
    other = content.replace(whole.tobytes(), (whole + 1).tobytes())
    file.write_bytes({"empty": b"", "cut short": content[:-40], "other bytes": other}[damage])
    with pytest.raises(UserError, match=r"c1\.npz"):
        StoredLabelsd("stored", run.handler.stored)({"case": "c1"})
    with caplog.at_level("WARNING", logger="SelfTraining"):
        run.handler.label(run.engine)
    assert str(file) in caplog.text
    np.testing.assert_array_equal(run.stored("c1"), whole)


def test_agreement_is_the_mean_dice_of_the_structures_that_are_found():
    first = torch.tensor([[[0, 1, 1, 2, 2, 2]]])
    second = torch.tensor([[[0, 1, 0, 2, 2, 2]]])
    assert agreement(first, second, 4) == pytest.approx((2 / 3 + 1) / 2)
    assert agreement(first * 0, second * 0, 4) == 1.0


def test_the_fence_is_tukeys():
    assert lower_fence([0.8, 0.9, 0.9, 1.0]) == pytest.approx(0.875 - 1.5 * 0.05)
    assert lower_fence([0.9, 0.9, 0.9]) == pytest.approx(0.9)
    assert lower_fence([0.8, 0.9, 0.9, 1.0], float("inf")) == lower_fence([0.9, 0.9], float("inf")) == float("-inf")


def test_contrast_changes_but_not_the_order_of_the_values():
    image = torch.linspace(-3, 3, 50)
    changed = other_contrast(image)
    assert (changed.diff() > 0).all() and not torch.allclose(changed, image, atol=0.05)


class Bands(nn.Module):
    """Predicts the class, 0 to 2, whose number is nearest to the intensity."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.cat([-((x - c) ** 2) for c in range(3)], dim=1) * self.scale


TEACHER = [0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0]
FAULTS = {  # what another program says, and what remains
    "right": (TEACHER, TEACHER),
    "shifted organ": ([0, 0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 0], [0, 0, -1, 1, 1, -1, 0, 2, 2, 2, 0, 0]),
    "swapped class": ([0, 0, 2, 2, 2, 0, 0, 1, 1, 1, 0, 0], [0, 0, -1, -1, -1, 0, 0, -1, -1, -1, 0, 0]),
    "missing organ": ([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, -1, -1, -1, 0, 0]),
    "no opinion": ([9, 9, 1, 1, 9, 9, 9, 9, 9, 2, 2, 0], [0, 0, 1, 1, 1, 0, 0, 2, 2, 2, -1, 0]),
}


def file_of(path, slices):
    """A NIfTI file whose slices along the last axis have these values."""
    array = np.broadcast_to(np.array(slices, np.float32), SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.copy(), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return str(path)


def self_training_with(folder, faults, foreign_labels="foreign_labels"):
    """A run whose unlabelled cases are the same image, each with another program's label."""
    spec = DatasetSpec(folder, foreign_labels=foreign_labels, label_names=["background", "one", "two"], ignore_value=9)
    (folder / "foreign_labels").mkdir(parents=True, exist_ok=True)
    cases = []
    for name, (foreign, _) in faults.items():
        cases.append({"case": name, "image": file_of(folder / f"images/{name}.nii.gz", TEACHER)})
        if foreign is not None:
            file_of(folder / f"foreign_labels/{name}.nii.gz", foreign)
    image, label = (file_of(folder / f"{kind}/l.nii.gz", TEACHER) for kind in ("images", "labels"))
    run = Run(folder / "stored", [{"case": "l", "image": image, "label": label}], cases)
    run.network = Bands()
    run.handler = SelfTraining(
        Teacher(run.network),
        SimpleInferer(),
        Compose(
            [
                LoadImaged(["image", "label"], reader=VolumeReader, allow_missing_keys=True),
                EnsureChannelFirstd(["image", "label"], allow_missing_keys=True),
                LabelsToClassesd("label", spec, allow_missing_keys=True),
                LabelOnImaged("label", allow_missing_keys=True),
            ]
        ),
        StoredLabels(folder / "stored"),
        5,
        20,
        folder / "labels_only.pt",
        spec,
    )
    run.engine.network = run.network
    run.handler.attach(run.engine)
    run.label()
    return run


def test_voxels_that_another_program_contradicts_are_left_out(tmp_path, caplog):
    with caplog.at_level("INFO", logger="SelfTraining"):
        run = self_training_with(tmp_path, {**FAULTS, "none": (None, TEACHER)})
    for name, (_, remaining) in {**FAULTS, "none": (None, TEACHER)}.items():
        np.testing.assert_array_equal(run.stored(name), np.broadcast_to(remaining, SHAPE), err_msg=name)
    assert "swapped class" in caplog.text  # has the lowest agreement, 0


def test_another_programs_label_is_not_taken_for_made_already(tmp_path):
    """A second run in the same folder has the same teacher, but other labels of other programs."""
    plain = self_training_with(tmp_path, {"shifted organ": FAULTS["shifted organ"]}, foreign_labels=None)
    assert (plain.stored("shifted organ") >= 0).all()
    assert (self_training_with(tmp_path, {"shifted organ": FAULTS["shifted organ"]}).stored("shifted organ") < 0).any()
    file_of(tmp_path / "foreign_labels/shifted organ.nii.gz", TEACHER)
    again = self_training_with(tmp_path, {"shifted organ": (TEACHER, TEACHER)})
    assert (again.stored("shifted organ") >= 0).all()
