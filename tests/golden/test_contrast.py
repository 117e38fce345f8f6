# SPDX-License-Identifier: Apache-2.0
"""The contrast with learned selectors against the recorded numbers of SS-Net."""

from __future__ import annotations

import pytest
import torch

from scripts.prototypes.loss import MIN_EMBEDDINGS, ContrastivePrototypeLoss, cosine_distance
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from tests.golden.golden_files import Golden, found, load_selector

FILES = found("contrastive_loss_*.npz")
PLACES = {"0": "linear1", "1": "bn", "3": "linear2"}


def loss_of(golden, memory_weighting="reference"):
    classes, dim = golden["num_classes"], golden["features"].shape[1]
    memory = PrototypeMemory(classes, dim, max(1, int(golden["memory_rows"].max())))
    memory.update({c: golden[f"memory_c{c}"] for c in range(classes) if f"memory_c{c}" in golden})
    selectors = ClassSelectors(classes, dim, memory_weighting)
    for c in range(classes):
        for kind, own in (("feature", selectors.feature), ("memory", selectors.memory)):
            load_selector(own[c], golden.part(f"{kind}_selector_c{c}."))
    loss = ContrastivePrototypeLoss(memory, selectors=selectors, samples_per_class=None, divisor="all")
    return loss.train(bool(golden["mode_train"]))


@pytest.fixture
def ran(request):
    """A file, our loss module after one call and backward pass, the features, and the value."""
    golden = Golden(request.param)
    loss = loss_of(golden)
    features = golden["features"].clone().requires_grad_()
    value = loss(features, golden["labels"])
    value.backward()
    return golden, loss, features, value


@pytest.mark.parametrize("ran", FILES, indirect=True)
def test_recorded_value_and_gradient_to_the_features_are_reproduced(ran):
    golden, _, features, value = ran
    golden.check(value, "out.loss", atol=1e-6, quantity="loss")
    golden.check(features.grad, "grad.features", atol=1e-7, rtol=1e-3, quantity="feature gradient")


@pytest.mark.parametrize("ran", FILES, indirect=True)
def test_recorded_gradients_to_every_selector_parameter_are_reproduced(ran):
    golden, loss, _, _ = ran
    for kind, own in (("feature", loss.selectors.feature), ("memory", loss.selectors.memory)):
        for c, selector in enumerate(own):
            for name, parameter in selector.named_parameters():
                layer, _, rest = name.partition(".")
                key = f"grad.{kind}_selector_c{c}.{PLACES[layer]}.{rest}"
                if key not in golden:
                    assert parameter.grad is None, key
                elif kind == "memory":  # w / w: only rounding noise in the reference and in ours
                    assert parameter.grad.abs().max() < 1e-6, key
                else:
                    golden.check(parameter.grad, key, atol=1e-7, rtol=1e-3, quantity="selector gradient")


@pytest.mark.parametrize("ran", FILES, indirect=True)
def test_recorded_batch_norm_statistics_are_reproduced(ran):
    golden, loss, _, _ = ran
    for kind, own in (("feature", loss.selectors.feature), ("memory", loss.selectors.memory)):
        for c, selector in enumerate(own):
            for key in golden.part(f"after.{kind}_selector_c{c}.bn."):
                recorded = f"after.{kind}_selector_c{c}.bn.{key}"
                golden.check(getattr(selector[1], key), recorded, atol=1e-5, quantity="selector statistics")


@pytest.mark.parametrize("path", FILES)
def test_recorded_classes_distances_and_weights_are_reproduced(path):
    golden = Golden(path)
    loss = loss_of(golden)
    with torch.no_grad():
        for c in range(golden["num_classes"]):
            features, prototypes = golden["features"][golden["labels"] == c], loss.memory.prototypes(c)
            used = min(len(features), len(prototypes)) >= MIN_EMBEDDINGS
            assert used == bool(golden["out.class_used"][c])
            if used:
                distances = cosine_distance(features, prototypes)
                ours = loss.selectors.feature_weights(c, features), loss.selectors.memory_weights(c, prototypes)
                golden.check(ours[0], f"out.feature_weights_c{c}", atol=1e-5, quantity="weights")
                golden.check(ours[1], f"out.memory_weights_c{c}", atol=1e-5, quantity="weights")
                weighted = (distances * ours[0][:, None] * ours[1]).mean()
                expected = golden["out.class_distance_mean"][c], golden["out.class_weighted_mean"][c]
                torch.testing.assert_close((distances.mean(), weighted), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", FILES)
def test_normalised_memory_weights_are_what_the_paper_describes(path):
    """Compared with the formula of the authors' paper, which their code does not compute; the file records it too."""
    golden = Golden(path)
    value = loss_of(golden, "normalised")(golden["features"], golden["labels"])
    golden.check(value, "derived.loss_memory_axis_rescaled", atol=1e-6, quantity="normalised loss")
