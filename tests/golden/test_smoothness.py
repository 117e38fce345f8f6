# SPDX-License-Identifier: Apache-2.0
"""Virtual adversarial smoothness against the recorded numbers of SS-Net."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.smoothness import SmoothnessTerm, adversarial_direction, unit_directions
from scripts.losses.supervised import linear_dice_loss
from scripts.training.inferer import FeatureInferer
from tests.golden.golden_files import Golden, compare, found
from tests.golden.golden_network import network_for, our_names

FILES = found("vat_*.npz")
# By mode_train, as in tests/golden/README.md.
LOSS, CLEAN, DIRECTION, DECODER_NORM, ENCODER_NORM = (
    (2e-6, 1e-4),
    (1e-5, 2e-4),
    (1e-6, 1e-3),
    (1e-4, 2e-3),
    (1e-4, 2e-1),
)


@pytest.fixture
def ran(request):
    """A file, the network after the term was computed and differentiated, and the term's value."""
    golden = Golden(request.param)
    network = network_for(golden)
    images = golden["input"]
    no_label = torch.zeros(0, 1, *images.shape[2:])
    step = FeatureInferer("decoder.stage1")(images, network.eval(), no_label)  # in this mode it records no statistics
    network.train(bool(golden["mode_train"]))
    term = SmoothnessTerm(
        probe=golden["xi"],
        epsilon=golden["epsilon"],
        iterations=golden["num_iters"],
        clean_pass="own",
        noise=lambda _: golden["rand"] - 0.5,
    )
    marker = next(network.parameters())
    marker.grad = torch.zeros_like(marker)
    value = term(step)
    assert marker.grad.eq(0).all()  # the search for the direction leaves no gradient behind
    marker.grad = None
    value.backward()
    return golden, network, value, step


@pytest.mark.parametrize("ran", FILES, indirect=True)
def test_recorded_value_gradients_and_statistics_are_reproduced(ran):
    golden, network, value, _ = ran
    mode = golden["mode_train"]
    golden.check(value, "out.loss", atol=LOSS[mode], quantity="loss")
    names, parameters = our_names(golden), dict(network.named_parameters())
    for key, norm in golden.part("grad_norm.").items():
        tolerance = (DECODER_NORM if key.startswith("decoder") else ENCODER_NORM)[mode]
        ours = parameters[names[key]].grad.norm()
        compare(golden.name, f"gradient norm of {key.partition('.')[0]}", ours, norm, atol=1e-7, rtol=tolerance)
    ours = parameters[names["decoder.out_conv.weight"]].grad
    golden.check(ours, "grad.decoder.out_conv.weight", atol=(1e-6, 1e-4)[mode], quantity="output gradient")
    for key in golden.part("after."):
        golden.check(network.state_dict()[names[key]], f"after.{key}", atol=1e-5, quantity="statistics")


@pytest.mark.parametrize("ran", FILES, indirect=True)
def test_recorded_directions_and_probabilities_are_reproduced(ran):
    golden, _, _, step = ran
    mode, images = golden["mode_train"], golden["input"]

    def predict(moved):
        return step.forward_pass(moved)[0].softmax(1)

    with torch.no_grad():
        clean = predict(images)
        golden.check(clean, "out.prob_clean", atol=CLEAN[mode], quantity="clean")
        golden.check(
            linear_dice_loss(clean, clean), "out.distance_clean_vs_clean", atol=LOSS[mode], quantity="distance"
        )
    start = golden["rand"] - 0.5
    golden.check(unit_directions(start)[0], "out.direction_init", atol=1e-6, quantity="direction")
    result = adversarial_direction(predict, images, clean, start, golden["xi"], golden["num_iters"])
    golden.check(result.direction, "out.direction_adv", atol=DIRECTION[mode], quantity="direction")
    cosine = torch.cosine_similarity(result.direction.flatten(1), golden["out.direction_adv"].flatten(1))
    assert cosine.min() > 0.999
    golden.check(torch.tensor(result.distances), "out.distance_per_iter", atol=LOSS[mode], quantity="distance")
    recorded = "out.direction_grad_norm"
    golden.check(result.gradient_norm, recorded, atol=0, rtol=ENCODER_NORM[mode], quantity="direction gradient norm")
    with torch.no_grad():
        moved = predict(images + golden["epsilon"] * result.direction)
    golden.check(moved, "out.prob_adv", atol=(1e-5, 1e-1)[mode], quantity="moved")
    assert (moved - golden["out.prob_adv"]).abs().mean() < 1e-2
