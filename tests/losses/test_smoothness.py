# SPDX-License-Identifier: Apache-2.0
"""Smoothness on networks whose adversarial direction is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.losses.smoothness import SmoothnessTerm, centred_noise
from scripts.training.inferer import FeatureInferer


class OneVoxel(nn.Module):
    """The logit of class 1 depends on the first voxel only."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.norm = nn.BatchNorm3d(1, affine=False)
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        self.norm(x)  # records statistics and is not used
        first = self.slope * x[:, :, :1, :1, :1]
        return torch.cat([-first, first], dim=1).expand(-1, -1, *x.shape[2:])


def step_of(network, labelled=1, unlabelled=1, dtype=None):
    images = torch.randn(labelled + unlabelled, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    return FeatureInferer("norm", divisor=1, dtype=dtype)(images, network, torch.zeros(labelled, 1, 2, 2, 2))


def moved_images(term, step):
    """The images of the term's last pass."""
    seen = []
    original = step.forward_pass

    def spy(images, keep_statistics=True, fixed_parameters=False):
        seen.append((images.detach(), keep_statistics))
        return original(images, keep_statistics, fixed_parameters)

    object.__setattr__(step, "forward_pass", spy)
    term(step)
    return seen


@pytest.mark.parametrize("iterations", [1, 3])
def test_images_are_moved_by_epsilon_along_the_only_direction_that_matters(iterations):
    torch.manual_seed(0)
    step = step_of(OneVoxel())
    passes = moved_images(SmoothnessTerm(epsilon=2.0, probe=0.1, iterations=iterations), step)
    assert len(passes) == iterations + 1
    change = (passes[-1][0] - step.images).flatten(1)
    assert change[:, 1:].abs().max() < 1e-6
    torch.testing.assert_close(change[:, 0].abs(), torch.full((2,), 2.0))


def test_value_is_the_distance_between_clean_and_moved_prediction_and_its_gradient_trains():
    torch.manual_seed(0)
    network = OneVoxel(slope=0.3)
    step = step_of(network, labelled=0)
    value = SmoothnessTerm(epsilon=1.0, probe=0.1)(step)
    clean = step.logits.detach().softmax(1)
    far = []
    for sign in (-1, 1):
        moved = step.images.clone()
        moved[:, :, 0, 0, 0] += sign
        p = network(moved).softmax(1).detach()
        far.append(1 - float((p * clean).sum()) / 8)
    assert value.item() == pytest.approx(max(far), abs=1e-5)
    value.backward()
    assert network.slope.grad.abs() > 0


def test_the_search_leaves_no_gradient_behind_and_reads_none():
    network = OneVoxel()
    network.slope.grad = torch.tensor(7.0)
    SmoothnessTerm()(step_of(network))
    assert network.slope.grad == 7.0


@pytest.mark.parametrize(("clean_pass", "recorded"), [("step", 1), ("own", 2)])
def test_perturbed_passes_record_no_statistics(clean_pass, recorded):
    network = OneVoxel()
    SmoothnessTerm(clean_pass=clean_pass, iterations=2)(step_of(network))
    assert network.norm.num_batches_tracked == recorded


def test_labelled_and_unlabelled_images_are_moved():
    step = step_of(OneVoxel(), labelled=2)
    assert all(len(images) == 3 for images, _ in moved_images(SmoothnessTerm(), step))


def test_a_network_that_ignores_its_input_gives_a_finite_value():
    network = OneVoxel(slope=0.0)
    value = SmoothnessTerm()(step_of(network))
    value.backward()
    assert value.item() == pytest.approx(0.5) and network.slope.grad.isfinite()


def test_under_autocast_value_and_gradient_are_finite():
    network = OneVoxel()
    value = SmoothnessTerm()(step_of(network, dtype=torch.bfloat16))
    value.backward()
    assert value.isfinite() and network.slope.grad.isfinite()


def test_noise_is_centred_and_follows_the_global_generator():
    torch.manual_seed(5)
    noise = centred_noise(torch.zeros(1, 1, 20, 20, 20))
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() < 0.5
    torch.manual_seed(5)
    assert torch.equal(centred_noise(torch.zeros(1, 1, 20, 20, 20)), noise)


@pytest.mark.parametrize("wrong", [{"clean_pass": "none"}, {"iterations": 0}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=f"SmoothnessTerm: .*{next(iter(wrong))}"):
        SmoothnessTerm(**wrong)
