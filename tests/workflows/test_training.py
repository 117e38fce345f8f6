# SPDX-License-Identifier: Apache-2.0
"""configs/train.yaml: what a run needs, reads, writes and repeats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from runpy import run_path

import pytest
import torch
from ignite.engine import Events
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNet

from scripts.errors import UserError, root_user_error
from tests.conftest import tiny_workflow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own_copy(tiny_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_demo, tmp_path / "copy"))


# The fourth step is the first with unlabelled cases.
PLAIN = {"max_steps": 4, "labelled_cases": 2, "self_training::min_dice": 0}


@pytest.fixture(scope="module")
def plain(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a run of `PLAIN`, as `train(**PLAIN)` returns them."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_workflow(tiny_demo, folder, "train.yaml", **PLAIN).run()
    return torch.load(folder / "models/model.pt", weights_only=True)


def labels_of(folder: Path, entries: slice) -> list[Path]:
    content = json.loads((folder / "dataset.json").read_text())
    return [folder / case["label"] for case in content["training"][entries]]


@pytest.mark.parametrize("damage", ["delete", "corrupt"])
def test_labels_of_unlabelled_cases_are_never_opened(damage, plain, train, own_copy, assert_same) -> None:
    for path in labels_of(own_copy, slice(2, None)):
        path.unlink() if damage == "delete" else path.write_bytes(b"not an image")
    assert_same(plain, train(**PLAIN, dataset_dir=str(own_copy)))


def test_a_damaged_label_of_a_labelled_case_is_noticed(train, own_copy) -> None:
    """The counterpart of the test above: it would also pass if no label at all were read."""
    labels_of(own_copy, slice(0, 1))[0].write_bytes(b"not an image")
    with pytest.raises(RuntimeError):
        train(labelled_cases=2, dataset_dir=str(own_copy))


def test_the_number_of_loader_workers_changes_nothing(plain, train, assert_same) -> None:
    assert_same(plain, train(**PLAIN, num_workers=2))


def test_unlabelled_cases_matter(plain, train) -> None:
    """Without this, the two tests above could pass because nothing unlabelled is used."""
    without = train(**PLAIN, batch_unlabelled=0, restart=0.5)  # the learning rate starts again in both
    assert any(not torch.equal(plain[key], without[key]) for key in plain)


def test_another_seed_gives_another_model(plain, train) -> None:
    other = train(**PLAIN, seed=1)
    assert any(not torch.equal(plain[key], other[key]) for key in plain)


def test_a_supervised_bundle_is_what_an_empty_unlabelled_set_makes(make_workflow) -> None:
    workflow = make_workflow("train.yaml", labelled_cases=None)
    workflow.run()
    assert len(workflow.parser.get_parsed_content("train::unlabelled_dataset")) == 0
    assert len(workflow.train_dataset) == 6
    assert workflow.parser.get_parsed_content("loss").last["supervised"] > 0


def test_another_network_trains_with_the_same_method_by_naming_a_layer(make_workflow) -> None:
    network = {
        "_target_": "SegResNet",
        "in_channels": "@in_channels",
        "out_channels": "@num_classes",
        "init_filters": 8,
    }
    workflow = make_workflow(
        "train.yaml",
        network_def=network,
        feature_layer="up_layers.2.0",
        feature_channels=8,
        size_divisor=8,
        deep_layers={},
        network_terms={},
        max_steps=3,
    )
    workflow.run()
    assert isinstance(workflow.network_def, SegResNet)
    memory = workflow.parser.get_parsed_content("memory")
    assert memory.counts[1:].sum() > 0
    assert workflow.parser.get_parsed_content("loss").last["contrast_labelled"] > 0


def test_patch_sides_that_16_does_not_divide_train_and_validate(train) -> None:
    train(roi_size=[30, 27, 19], max_steps=2, val_interval=2)


@pytest.mark.parametrize(("options", "restart"), [({}, 0.5), ({"batch_unlabelled": 0}, 1), ({"labelled_cases": 6}, 1)])
def test_only_a_run_with_unlabelled_cases_starts_anew(options, restart, make_workflow) -> None:
    content = make_workflow("train.yaml", **options).parser.get_parsed_content
    assert content("restart") == restart
    kinds = [type(each).__name__ for each in content("method_handlers") if each is not None]
    assert kinds == ["MemoryBankUpdater", *(["SelfTraining"] if restart < 1 else [])]


def test_a_run_ends_at_its_step_and_validates_on_the_way(make_workflow, tmp_path) -> None:
    workflow = make_workflow("train.yaml", max_steps=4, val_interval=2, **{"train::handlers::0::pictures": 1})
    validated = []
    workflow.evaluator.add_event_handler(Events.COMPLETED, lambda _: validated.append(workflow.trainer.state.iteration))
    workflow.run()
    assert workflow.trainer.state.iteration == 4
    assert validated == [2, 4]
    models = {path.name for path in (tmp_path / "models").iterdir()}
    weights = {"model.pt", "model_best.pt", "model_labels_only.pt", "checkpoint_00000004.pt"}
    assert models == {*weights, "pseudo_labels", "run.json"}
    assert set(torch.load(tmp_path / "models/model.pt", weights_only=True)) == set(workflow.network_def.state_dict())
    assert list((tmp_path / "out/overlays").glob("*.png"))
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))


class Exhausted(SlidingWindowInferer):
    """Fails in its first call; copies share the errors to raise."""

    def __init__(self, error: Exception) -> None:
        super().__init__((32, 32, 16))
        self.errors = [error]

    def __call__(self, inputs, network, *args, **kwargs):
        if self.errors:
            raise self.errors.pop()
        return super().__call__(inputs, network, *args, **kwargs)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_a_validation_that_runs_out_of_memory_does_not_end_the_run(error, make_workflow, tmp_path, capsys) -> None:
    workflow = make_workflow("train.yaml", max_steps=4, val_interval=2)
    inferer = workflow.parser.get_parsed_content("validate::evaluator").inferer
    inferer.inferer = Exhausted(error)
    workflow.run()
    assert workflow.trainer.state.iteration == 4
    assert "validation after step 2 ran out of memory" in capsys.readouterr().out
    assert (tmp_path / "models/model.pt").exists() and (tmp_path / "models/model_best.pt").exists()  # of step 4


def test_a_validation_that_fails_loses_no_step_and_a_resumed_run_repeats_it(make_workflow, tmp_path) -> None:
    workflow = make_workflow("train.yaml", max_steps=4, val_interval=2, save_interval=2)
    inferer = workflow.parser.get_parsed_content("validate::evaluator").inferer
    inferer.inferer = Exhausted(RuntimeError("another fault"))
    with pytest.raises(RuntimeError):
        workflow.run()
    assert (tmp_path / "models/checkpoint_00000002.pt").exists()
    resumed = make_workflow("train.yaml", max_steps=4, val_interval=2, save_interval=2, resume=True)
    validated = []
    resumed.evaluator.add_event_handler(Events.COMPLETED, lambda _: validated.append(resumed.trainer.state.iteration))
    resumed.run()
    assert validated == [2, 4]


def test_without_validation_cases_a_run_goes_without_validation(train, own_copy) -> None:
    content = json.loads((own_copy / "dataset.json").read_text())
    del content["validation"]
    (own_copy / "dataset.json").write_text(json.dumps(content))
    train(dataset_dir=str(own_copy), val_interval=1)


def test_required_properties_are_all_there(make_workflow) -> None:
    assert make_workflow("train.yaml").check_properties() == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"dataset_dir": "/nowhere/at/all", "dataset_name": "mine"}, "dataset_dir"),
        ({"labelled_cases": 99}, "labelled_cases"),
        ({"label_names": ["background", "large organ"]}, "label_names"),
        ({"roi_size": [4096, 4096, 4096]}, "roi_size"),
        ({"batch_labelled": 0}, "batch_labelled"),
        ({"seed": -1}, "seed"),
        ({"precision": "fp8"}, "precision"),
        ({"feature_layer": "decoder.nothing"}, "feature_layer"),
    ],
)
def test_a_newcomers_mistake_is_one_sentence(overrides, words, make_workflow) -> None:
    with pytest.raises(Exception) as caught:
        make_workflow("train.yaml", **overrides).run()
    mistake = root_user_error(caught.value)
    assert isinstance(mistake, UserError), caught.value
    assert words in str(mistake)
    assert "\n" not in str(mistake)


def test_demo_volumes_are_made_where_they_are_missing(make_workflow, tmp_path, monkeypatch) -> None:
    made = []
    monkeypatch.setattr("scripts.data.demo.ensure_demo_dataset", lambda directory: made.append(directory))
    make_workflow("train.yaml", dataset_dir=str(tmp_path / "fresh"))
    assert made == [str(tmp_path / "fresh")]
    make_workflow("train.yaml", dataset_dir=str(tmp_path / "mine"), dataset_name="mine")
    assert len(made) == 1


def test_the_chart_of_a_step_in_the_docs_is_that_of_the_trainer(make_workflow) -> None:
    chart = run_path(str(ROOT / "docs/examples/training_step.py"))["chart"]
    trainer = make_workflow("train.yaml", batch_labelled=2, batch_unlabelled=1).trainer
    assert f"```mermaid\n{chart(trainer)}\n```" in (ROOT / "docs/method.md").read_text()
