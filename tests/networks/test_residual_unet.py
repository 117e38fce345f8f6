# SPDX-License-Identifier: Apache-2.0
"""The residual U-Net: sizes, strides per axis, norms, arguments, TorchScript."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks.residual_unet import ResidualUNet

SMALL = {"widths": (8, 16, 16), "blocks": (1, 1, 2)}


def modules_of(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(("stem", "divisors"), [(2, (8, 8, 8)), (1, (4, 4, 4)), ((2, 2, 1), (8, 8, 4))])
def test_logits_have_the_shape_of_the_image_for_the_smallest_sides(stem, divisors):
    network = ResidualUNet(2, 3, stem_stride=stem, **SMALL)
    assert network.divisors == divisors
    sides = [3 * divisor for divisor in divisors]
    assert network(torch.zeros(2, 2, *sides)).shape == (2, 3, *sides)


def test_an_axis_with_large_voxels_is_halved_less_often():
    network = ResidualUNet(1, 2, stem_stride=(2, 2, 1), strides=[(2, 2, 1), 2], **SMALL)
    assert network.divisors == (8, 8, 2)
    assert network(torch.zeros(1, 1, 16, 8, 6)).shape == (1, 2, 16, 8, 6)


def test_decoder_stages_are_layers_from_coarse_to_fine():
    network = ResidualUNet(1, 2, **SMALL)
    shapes = {}
    for name in ("decoder.0", "decoder.1"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _m, _a, output, name=name: shapes.update({name: tuple(output.shape)}))
    network(torch.zeros(1, 1, 16, 16, 16))
    assert shapes == {"decoder.0": (1, 16, 4, 4, 4), "decoder.1": (1, 8, 8, 8, 8)}


def test_without_a_strided_stem_there_is_no_head_of_its_own():
    assert ResidualUNet(1, 2, stem_stride=1, **SMALL).head is None
    assert ResidualUNet(1, 2, stem_stride=2, **SMALL).head is not None


@pytest.mark.parametrize(
    ("norm", "kind"), [("group", nn.GroupNorm), ("batch", nn.BatchNorm3d), ("instance", nn.InstanceNorm3d)]
)
def test_every_convolution_but_the_last_has_the_norm_and_groups_have_eight_channels(norm, kind):
    network = ResidualUNet(1, 2, norm=norm, **SMALL)
    norms = modules_of(network, kind)
    convolutions = [c for c in modules_of(network, nn.Conv3d) if c is not network.output]
    assert len(norms) == len(convolutions)
    assert all(m.weight is not None and m.bias is not None for m in norms)
    if kind is nn.GroupNorm:
        assert {m.num_channels // m.num_groups for m in norms} == {8}


def test_a_block_adds_its_input():
    """With weights of 0 in its convolutions and shifts of 0, a residual block passes positive values on."""
    block = ResidualUNet(1, 2, **SMALL).encoder[2][1]
    for convolution in modules_of(block, nn.Conv3d):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(1, 16, 4, 4, 4)
    assert torch.allclose(block(x), x)


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (8,), "blocks": (1,)},
        {"widths": (8, 16), "blocks": (1,)},
        {"widths": (8, 16), "blocks": (1, 1), "strides": [2, 2]},
    ],
)
def test_lists_that_do_not_match_are_refused(options):
    with pytest.raises(ValueError, match=r"widths"):
        ResidualUNet(1, 2, **options)


def test_a_side_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match=r"side 1 must be a multiple of 8, got 12"):
        ResidualUNet(1, 2, **SMALL)(torch.zeros(1, 1, 8, 12, 8))


def test_torchscript_gives_the_same_logits():
    network = ResidualUNet(1, 2, **SMALL).eval()
    image = torch.randn(1, 1, 16, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(network)(image), network(image), atol=1e-6)
