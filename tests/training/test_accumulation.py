# SPDX-License-Identifier: Apache-2.0
"""Steps that are computed in parts: what equals the undivided step, and what happens once per step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from scripts.errors import UserError, root_user_error
from scripts.losses import mixing
from scripts.training.inferer import FeatureInferer
from scripts.training.memory_updater import MemoryBankUpdater
from scripts.training.trainer import _joined, _part
from tests.recorded_runs import differences, method_settings, train_and_record

MEANS = {
    "supervised": {"_target_": "scripts.losses.supervised.SupervisedTerm", "dice_weight": 0.0},
    "soft": {"_target_": "scripts.losses.unlabelled.ConsistencyTerm"},
    "entropy": {"_target_": "scripts.losses.unlabelled.EntropyTerm"},
    "copy_paste": {"_target_": "scripts.losses.mixing.CopyPasteTerm"},
}
"""Terms that are means over the voxels of equally many cases."""

WITH_TEACHER = {"restart": 1, "pseudo_label_teacher": "@teacher", "deep_layers": {}, "network_terms": {}}
SGD = {"_target_": "torch.optim.SGD", "params": "@trained_parameters", "lr": "@learning_rate"}


@pytest.fixture
def fixed_box(monkeypatch) -> None:
    """Copy-paste draws a box in each pass, so that parts have boxes of their own."""
    box = torch.zeros(32, 32, 16, dtype=torch.bool)
    box[4:20, 8:24, 3:12] = True
    monkeypatch.setattr(mixing, "random_box", lambda *_: box)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "parts", "norm"), [(2, 2, 2, "instance"), (4, 2, 2, "group"), (3, 3, 3, "group")]
)
def test_parts_have_the_weights_of_the_undivided_step(
    labelled, unlabelled, parts, norm, train, make_workflow, fixed_box
) -> None:
    overrides = {
        "batch_labelled": labelled, "batch_unlabelled": unlabelled, "terms": MEANS, "method_handlers": [],
        "optimizer": SGD, "learning_rate": 0.05, "norm": norm, "max_steps": 1, **WITH_TEACHER,
    }  # fmt: skip
    whole = train(name="whole", **overrides)
    divided = train(name="divided", accumulation_steps=parts, **overrides)
    start = make_workflow("train.yaml", **overrides).parser.get_parsed_content("network_def").state_dict()
    assert max(float((whole[key] - start[key]).abs().max()) for key in whole) > 5e-4, "training must move the weights"
    for key in whole:
        torch.testing.assert_close(divided[key], whole[key], rtol=0, atol=1e-6)


def test_three_steps_in_parts_have_the_gradients_of_undivided_ones(tiny_demo, monkeypatch, tmp_path) -> None:
    """In float64: in float32 a network over a grid of 4 x 2 x 2 multiplies the rounding of the first step."""
    box = torch.zeros(32, 16, 16, dtype=torch.bool)
    box[4:20, 3:12, 5:9] = True
    monkeypatch.setattr(mixing, "random_box", lambda *_: box)
    smaller = {"roi_size": [32, 16, 16], "widths": [2, 2, 2, 2], "validate::inferer::overlap": 0.0}
    records = []
    for parts in (1, 2):
        files, overrides = method_settings("train", tiny_demo, tmp_path / str(parts), steps=3, batch=2)
        overrides |= {"accumulation_steps": parts, "terms": MEANS, "method_handlers": [], **WITH_TEACHER, **smaller}
        overrides = {key: value for key, value in overrides.items() if not key.startswith("terms::")}
        train_and_record(files, overrides, True, str(tmp_path / "record.pt"))
        records.append(torch.load(tmp_path / "record.pt")["steps"])
    for step, whole in records[0].items():
        assert records[1][step]["loss"] == pytest.approx(whole["loss"], rel=1e-9)
        for name in ("gradient", "weights"):
            assert float((records[1][step][name] - whole[name]).norm()) <= 1e-7 * float(whole[name].norm()), name


def test_everything_that_counts_steps_counts_optimiser_steps(make_workflow, monkeypatch) -> None:
    calls = Counter()
    update = MemoryBankUpdater.__call__

    def counted(self, engine):
        calls["memory"] += 1
        batch = engine.state.output["pred"]
        assert (batch.num_labelled, batch.num_unlabelled, len(batch.labels)) == (4, 2, 4)
        update(self, engine)

    monkeypatch.setattr(MemoryBankUpdater, "__call__", counted)
    batch = {"batch_labelled": 4, "batch_unlabelled": 2, "accumulation_steps": 2}
    workflow = make_workflow("train.yaml", "methods/prototype.yaml", max_steps=3, **batch)
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: (calls.update(["optimiser"]), step(*a, **k))[1])
    workflow.run()
    teacher, loss = (workflow.parser.get_parsed_content(key) for key in ("teacher", "loss"))
    assert workflow.trainer.state.iteration == 3 == int(teacher.n_averaged) == loss.step
    assert calls == {"memory": 3, "optimiser": 3}
    lr = workflow.trainer.optimizer.param_groups[0]["lr"]
    assert lr == pytest.approx(workflow.parser.get_parsed_content("learning_rate_curve")(3) * 0.002)


def test_logged_values_are_means_over_the_parts(make_workflow, monkeypatch) -> None:
    workflow = make_workflow(
        "train.yaml",
        max_steps=1,
        batch_labelled=2,
        batch_unlabelled=2,
        accumulation_steps=2,
        terms=MEANS,
        **WITH_TEACHER,
    )
    loss, values = workflow.parser.get_parsed_content("loss"), []
    forward = loss.terms["entropy"].forward
    monkeypatch.setattr(loss.terms["entropy"], "forward", lambda batch: (values.append(forward(batch)), values[-1])[1])
    workflow.run()
    first, second = (float(value.detach()) for value in values)
    assert first != second
    assert loss.last["entropy"] == pytest.approx((first + second) / 2)
    assert float(workflow.trainer.state.output[0]["loss"]) == pytest.approx(sum(loss.last.values()))


@pytest.mark.parametrize(("labelled", "unlabelled"), [(4, 2), (2, 4), (2, 0)])
def test_joined_parts_are_the_whole_batch_in_its_order(labelled, unlabelled) -> None:
    network, teacher = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Conv3d(3, 2, 1)), nn.Conv3d(1, 2, 1)
    inferer = FeatureInferer("0", divisor=1, teacher=nn.Sequential(nn.Identity(), teacher))
    image = torch.randn(labelled + unlabelled, 1, 2, 3, 4)
    volumes = {
        "label": torch.randint(2, (labelled, 1, 2, 3, 4)),
        "weak": torch.randn(unlabelled, 1, 2, 3, 4) if unlabelled else None,
        "stored": None,
        "cases": ("a", "b"),
    }
    whole = inferer(image, network, **volumes)
    parts = []
    for number in range(2):
        inputs, kwargs = _part(image, volumes, number, 2)
        parts.append(inferer(inputs, network, **kwargs))
    joined = _joined(parts)
    for name in ("logits", "features", "labels", "images", "weak_images", "teacher_logits"):
        one, other = getattr(whole, name), getattr(joined, name)
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-6), name
    assert joined.cases == ("a", "b") and not joined.logits.requires_grad


def test_stored_pseudo_labels_are_divided_too() -> None:
    volumes = {"label": torch.zeros(2, 1, 1, 1, 1), "weak": None, "stored": torch.arange(4.0).reshape(4, 1, 1, 1, 1)}
    _, kwargs = _part(torch.zeros(6, 1, 1, 1, 1), volumes, 1, 2)
    assert kwargs["stored"].flatten().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "named"),
    [(3, 2, "batch_labelled"), (2, 3, "batch_unlabelled"), (1, 1, "batch_labelled")],
)
def test_unequal_parts_are_refused_by_the_names_of_the_keys(labelled, unlabelled, named, make_workflow) -> None:
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", batch_labelled=labelled, batch_unlabelled=unlabelled, accumulation_steps=2).run()
    error = root_user_error(caught.value)
    assert isinstance(error, UserError) and "accumulation_steps" in str(error) and named in str(error)


def test_the_trainers_own_argument_is_the_same_as_the_key(train, assert_same) -> None:
    batch = {"batch_labelled": 2, "batch_unlabelled": 2, "max_steps": 1}
    by_key = train(name="key", accumulation_steps=2, **batch)
    assert_same(by_key, train(name="argument", **batch, **{"train::trainer::accumulation_steps": 2}))
    undivided = train(name="undivided", **batch)
    assert any(not torch.equal(by_key[name], undivided[name]) for name in by_key)


@pytest.mark.parametrize("method", ["train", "prototype_selectors"])
def test_a_resumed_run_ends_with_the_same_state(method, tiny_demo, make_workflow, tmp_path) -> None:
    """The last checkpoint is deleted, so the second run repeats the last step from the one before."""
    files, overrides = method_settings(method, tiny_demo, tmp_path, steps=3, batch=2)
    overrides |= {"accumulation_steps": 2, "save_interval": 2, "widths": [2, 2, 2, 2], "norm": "instance"}
    make_workflow(*files, **overrides).run()
    last = tmp_path / "models/checkpoint_00000003.pt"
    first = torch.load(last, weights_only=True)
    last.unlink()
    make_workflow(*files, resume=True, **overrides).run()
    assert differences(first, torch.load(last, weights_only=True)) == []


def test_another_number_of_parts_on_a_resume_is_refused(make_workflow) -> None:
    batch = {"batch_labelled": 2, "batch_unlabelled": 2}
    make_workflow("train.yaml", max_steps=1, **batch).run()
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", max_steps=2, resume=True, accumulation_steps=2, **batch).run()
    assert "accumulation_steps" in str(root_user_error(caught.value))
