# SPDX-License-Identifier: Apache-2.0
"""Every method in configs/methods trains on the demo and on other data, each of its terms with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.prototypes.manager import ContrastivePrototypeManager
from scripts.training.memory_updater import MemoryBankUpdater
from tests.losses.batches import make_batch

METHODS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "configs/methods").glob("*.yaml"))
STEPS, FIRST_UNLABELLED = 10, 3


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Two structures, each bright in a channel of its own; 2 labelled and 3 unlabelled cases of 36 x 20 x 10 voxels."""
    folder, draw = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)

    def write(name, array):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.5, 4.0, 1.0])), folder / name)
        return name

    def case(number):
        label = np.zeros((36, 20, 10), np.uint8)
        d, h, w = draw.integers(0, [4, 4, 2])
        label[d + 2 : d + 15, h + 2 : h + 14, w + 1 : w + 8] = 1
        label[d + 16 : d + 30, h + 4 : h + 15, w + 1 : w + 8] = 2
        channels = [(label == c) + draw.normal(0, 0.1, label.shape) for c in (1, 2)]
        images = [write(f"{number}_{i}.nii.gz", channel.astype(np.float32)) for i, channel in enumerate(channels)]
        return {"image": images, "label": write(f"{number}_label.nii.gz", label)}

    (folder / "dataset.json").write_text(json.dumps({"training": [case(number) for number in range(5)]}))
    return folder


@pytest.fixture(params=["toy", pytest.param("demo", marks=pytest.mark.slow)])
def data(request) -> dict:
    """Overrides that name the data."""
    if request.param == "demo":
        return {}
    folder = str(request.getfixturevalue("toy"))
    return {
        "dataset_dir": folder,
        "in_channels": 2,
        "label_names": ["background", "first", "second"],
        "spacing": [1.0, 1.5, 4.0],
        "roi_size": [32, 16, 16],
        # Ten steps learn less than augmented patches differ from each other.
        "train#spatial_transforms#1#prob": 0,
        "train#spatial_transforms#1#elastic_prob": 0,
        "train#intensity_transforms": [],
    }


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """Curves `Loss/<name>` in TensorBoard's files: name to step to value."""
    events = EventAccumulator(str(folder)).Reload()
    curves = [tag for tag in events.Tags()["scalars"] if tag.startswith("Loss/")]
    return {tag.removeprefix("Loss/"): {e.step: e.value for e in events.Scalars(tag)} for tag in curves}


@pytest.mark.parametrize("method", METHODS)
def test_every_term_of_a_method_acts_and_is_logged(method, data, make_workflow, tmp_path) -> None:
    options, begin = {"max_steps": STEPS, "unlabelled_start": FIRST_UNLABELLED / STEPS, **data}, 1
    if method == "self_training":  # starts anew after two steps
        options |= {"restart": 0.2, "learning_rate_curve#warmup": 1, "self_training#min_dice": 0}
        begin = 3
    workflow = make_workflow("train.yaml", f"methods/{method}.yaml", **options)
    loss = workflow.parser.get_parsed_content("loss")
    for chooser in [*loss.terms.values(), *workflow.parser.get_parsed_content("method_handlers")]:
        for threshold in [name for name in vars(chooser) if name.endswith("confidence")]:
            setattr(chooser, threshold, 0.0)  # an untrained network is not confident: its voxels count all the same
    workflow.run()

    curves = logged(tmp_path / "out")
    assert set(curves) == {"total", *loss.terms}
    for name, term in loss.terms.items():
        due = [step for step in range(1, STEPS + 1) if term.weight_at(step, STEPS) != 0]
        assert list(curves[name]) == due, f"{name} is computed exactly where it has a weight"
        assert all(math.isfinite(value) for value in curves[name].values()), name
        assert max(curves[name].values()) > 0, f"{name} never acted"
    assert curves["supervised"][STEPS] < curves["supervised"][begin]


@pytest.mark.parametrize("with_selectors", [False, True])
@pytest.mark.parametrize("contrastive_weight", [1.0, 0.3])
def test_prototype_manager_adds_the_loss_of_the_methods_documents_manager(
    with_selectors, contrastive_weight, make_workflow
) -> None:
    """Two labelled cases whose voxels all fit into the memory and are all compared."""
    workflow = make_workflow(
        *("train.yaml", "methods/prototype_manager.yaml"),
        elements_per_class=400,
        deep_layers={},
        network_terms={},
        contrastive_weight=contrastive_weight,
        use_learned_selector=str(with_selectors).lower(),  # as a command line gives it
    )
    loss, head = (workflow.parser.get_parsed_content(key) for key in ("loss", "projection_head"))
    (updater,) = [
        each for each in workflow.parser.get_parsed_content("method_handlers") if isinstance(each, MemoryBankUpdater)
    ]
    loss.eval()
    torch.manual_seed(0)
    shape, labels = (6, 5, 4), torch.randint(0, 4, (2, 6, 5, 4))
    batch = make_batch(torch.randn(2, 4, *shape), torch.randn(2, 4, *shape), labels)
    updater(SimpleNamespace(state=SimpleNamespace(output={"pred": batch})))

    manager = ContrastivePrototypeManager(4, 32, 400, use_learned_selector=with_selectors).eval()
    if with_selectors:
        manager.loss.selectors.load_state_dict(workflow.parser.get_parsed_content("selectors").state_dict())
    projected = head(batch.features.movedim(1, -1).reshape(-1, 4)).reshape(2, *shape, 32).movedim(-1, 1)
    expected, parts = manager.update_and_compute_loss(projected, batch.logits, labels)
    value = loss(batch).item()
    assert min(parts.values()) > 0
    assert value == pytest.approx(loss.last["supervised"] + contrastive_weight * expected.item(), abs=1e-5)
    assert (workflow.parser.get_parsed_content("extra_optimizer") is not None) is with_selectors


@pytest.mark.parametrize("method", METHODS)
def test_class_weights_reach_the_supervised_term_of_every_method(method, make_workflow) -> None:
    weights = [1.0, 2.0, 0.5, 4.0]
    loss = make_workflow("train.yaml", f"methods/{method}.yaml", class_weights=weights).parser.get_parsed_content(
        "loss"
    )
    assert loss.terms["supervised"].class_weights == weights
