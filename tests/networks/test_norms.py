# SPDX-License-Identifier: Apache-2.0
"""Extra passes leave running statistics alone, and instance norm is the same in both memory layouts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.networks.norms import InstanceNorm3d, running_statistics_kept

NORMS = {
    "batch": lambda: nn.BatchNorm3d(3),
    "batch, cumulative": lambda: nn.BatchNorm3d(3, momentum=None),
    "batch, no tracking": lambda: nn.BatchNorm3d(3, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm3d(3, track_running_stats=True),
    "instance, no tracking": lambda: nn.InstanceNorm3d(3),
}


@pytest.fixture
def image():
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.mark.parametrize("norm", NORMS)
def test_output_is_that_of_a_training_pass_and_buffers_stay(norm, image):
    network = nn.Sequential(NORMS[norm]())
    witness = copy.deepcopy(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with running_statistics_kept(network):
        output = network(image)
    assert torch.equal(output, witness(image))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_afterwards_statistics_are_recorded_as_before_it(norm, image):
    network = nn.Sequential(NORMS[norm]())
    witness = copy.deepcopy(network)
    with pytest.raises(ZeroDivisionError), running_statistics_kept(network):
        raise ZeroDivisionError
    network(image)
    witness(image)
    for key, value in witness.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_in_evaluation_mode_the_recorded_statistics_are_used(image):
    network = nn.BatchNorm3d(3).eval()
    network.running_mean.fill_(1.0)
    expected = network(image)
    with running_statistics_kept(network):
        assert torch.equal(network(image), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_is_that_of_torch_and_keeps_the_layout(image, layout, training):
    ours, theirs = InstanceNorm3d(3, affine=True), nn.InstanceNorm3d(3, affine=True)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        ours.bias.copy_(torch.tensor([0.0, 3.0, 1.0]))
    theirs.load_state_dict(ours.state_dict())  # strict: the same keys
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for norm, given in ((ours, image.contiguous(memory_format=layout)), (theirs, image)):
        leaf = given.clone(memory_format=torch.preserve_format).requires_grad_()
        output = norm.train(training)(leaf)
        output.backward(gradient)
        found.append([output.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
    assert found[0][0].is_contiguous(memory_format=layout)
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
