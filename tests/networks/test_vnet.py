# SPDX-License-Identifier: Apache-2.0
"""V-Net: sizes, arguments, errors, export, published weights. tests/golden/test_vnet.py compares its numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.networks.vnet import VNet, load_reference_backbone

UNEQUAL = (16, 48, 32)


def image(channels=1, shape=UNEQUAL, batch=1):
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(0))


def count(network):
    return sum(p.numel() for p in network.parameters())


def modules_of(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


def test_default_has_the_published_number_of_parameters():
    assert count(VNet()) == 9_448_866
    assert count(VNet(in_channels=1, out_channels=2, base_filters=16)) == 9_448_866


def parameters_by_hand(channels, classes, f):
    """Convolutions with bias and two numbers a channel for batch norm, stage by stage."""

    def conv(i, o, kernel):
        return i * o * kernel**3 + o + 2 * o

    widths = [f, 2 * f, 4 * f, 8 * f, 16 * f]
    total, width = 0, channels
    for w, layers in zip(widths, (1, 2, 3, 3, 3), strict=True):
        if w != f:
            total += conv(width, w, 2)
            width = w
        for _ in range(layers):
            total += conv(width, w, 3)
            width = w
    for w, layers in zip(reversed(widths[:4]), (3, 3, 2, 1), strict=True):
        total += conv(2 * w, w, 2) + layers * conv(w, w, 3)
    return total + f * classes + classes


@pytest.mark.parametrize(("channels", "classes", "filters"), [(1, 2, 16), (4, 3, 2), (2, 1, 3), (1, 14, 1)])
def test_any_channels_classes_and_filters(channels, classes, filters):
    network = VNet(channels, classes, filters).eval()
    assert count(network) == parameters_by_hand(channels, classes, filters)
    with torch.no_grad():
        assert network(image(channels)).shape == (1, classes, *UNEQUAL)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("batch", nn.BatchNorm3d), ("group", nn.GroupNorm), ("instance", nn.InstanceNorm3d), ("GROUP", nn.GroupNorm)],
)
def test_norm_follows_every_convolution_but_the_last(norm, kind):
    network = VNet(base_filters=2, norm=norm)
    norms = modules_of(network, kind)
    convolutions = modules_of(network, nn.Conv3d | nn.ConvTranspose3d)
    assert len(norms) == len(convolutions) - 1 == 12 + 4 + 4 + 9
    assert all(m.weight is not None and m.bias is not None for m in norms)
    with torch.no_grad():
        assert network.eval()(image()).isfinite().all()


def test_without_norm_there_is_none():
    network = VNet(base_filters=2, norm=None)
    assert not modules_of(network, nn.BatchNorm3d | nn.GroupNorm | nn.InstanceNorm3d)
    with torch.no_grad():
        assert network(image()).isfinite().all()


@pytest.mark.parametrize(("filters", "groups"), [(16, 8), (12, 4), (3, 1)])
def test_groups_divide_every_width(filters, groups):
    assert {m.num_groups for m in modules_of(VNet(base_filters=filters, norm="group"), nn.GroupNorm)} == {groups}


def test_norm_with_arguments_is_taken_as_it_is():
    network = VNet(base_filters=4, norm=("group", {"num_groups": 2}))
    assert {m.num_groups for m in modules_of(network, nn.GroupNorm)} == {2}


def test_dropout_acts_in_training_mode_only():
    network, x = VNet(base_filters=2, norm=None, dropout_prob=0.5), image()
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = network(x), network(x)
        assert not torch.equal(first, second)
        network.eval()
        assert torch.equal(network(x), network(x))
        plain = VNet(base_filters=2, norm=None)
        plain.load_state_dict(network.state_dict())
        assert torch.equal(network(x), plain(x))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dropout_acts_at_the_bottleneck_and_before_the_output_and_drops_whole_channels(part):
    network = VNet(base_filters=8, norm=None, dropout_prob=0.5)
    dropout = getattr(network, part).dropout
    assert dropout.p == 0.5
    seen = {}
    dropout.register_forward_hook(lambda _m, args, output: seen.update(before=args[0], after=output))
    torch.manual_seed(0)
    with torch.no_grad():
        network(image())
    ratio = seen["after"].sum((0, 2, 3, 4)) / seen["before"].sum((0, 2, 3, 4))
    ratio = ratio[seen["before"].sum((0, 2, 3, 4)) > 0]
    assert ((ratio - 2).abs() < 1e-4).logical_or(ratio == 0).all()
    assert (ratio == 0).any() and (ratio > 0).any()
    assert seen["after"].shape[2:] == (torch.Size([1, 3, 2]) if part == "encoder" else torch.Size(UNEQUAL))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_output_depends_on_each_dropout_alone(part):
    """Fails if a dropout's result is not used."""
    network, x = VNet(base_filters=4, norm=None, dropout_prob=0.5).eval(), image()
    with torch.no_grad():
        still = network(x)
        getattr(network, part).dropout.train()
        torch.manual_seed(0)
        assert not torch.allclose(network(x), still)


def test_dropout_comes_after_the_layer_that_prototypes_use():
    network, x = VNet(base_filters=2, norm=None, dropout_prob=0.9), image()
    network.encoder.dropout.eval()
    seen = []
    network.decoder.stage1.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.no_grad():
        network(x), network(x)
    assert torch.equal(*seen)


@pytest.mark.parametrize("shape", [(17, 32, 16), (16, 40, 16), (16, 32, 8)])
def test_side_that_is_not_a_multiple_of_sixteen_is_refused(shape):
    bad = next(side for side in shape if side % 16)
    with pytest.raises(ValueError, match=rf"16.*\b{bad}\b"):
        VNet(base_filters=1)(image(shape=shape))


def test_volume_without_a_batch_axis_is_refused():
    with pytest.raises(ValueError, match="4 axes"):
        VNet(base_filters=1)(image()[0])


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "base_filters"])
def test_count_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        VNet(**{name: 0})


@pytest.mark.parametrize("prob", [-0.1, 1.0])
def test_dropout_outside_its_range_is_refused(prob):
    with pytest.raises(ValueError, match=f"dropout_prob.*{prob}"):
        VNet(dropout_prob=prob)


def test_axes_are_treated_alike_but_not_swapped():
    """If weights and image are rotated, the output is rotated; if only the image is, it is not."""
    network = VNet(base_filters=2).eval()
    turned = copy.deepcopy(network)
    order = (0, 1, 4, 2, 3)
    turned.load_state_dict({k: v.permute(order) if v.ndim == 5 else v for k, v in network.state_dict().items()})
    x = image()
    with torch.no_grad():
        expected = network(x).permute(order)
        torch.testing.assert_close(turned(x.permute(order)), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(network(x.permute(order)), expected, atol=1e-3)


def test_every_parameter_gets_a_gradient():
    network = VNet(in_channels=2, out_channels=3, base_filters=2, norm="group")
    network(image(2)).square().sum().backward()
    assert [k for k, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_script_gives_the_same_output_and_the_same_refusal():
    network, x = VNet(base_filters=2, dropout_prob=0.3).eval(), image()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), network(x), atol=1e-6, rtol=1e-5)
    with pytest.raises(Exception, match=r"16.* 17"):
        scripted(image(shape=(16, 17, 16)))


def test_export_with_dynamic_batch_and_sides_gives_the_same_output():
    """Sides from 32, because torch.export specialises a bottleneck of one voxel (side 16)."""
    network = VNet(base_filters=2).eval()
    sides = {axis: 16 * torch.export.Dim(name, min=2, max=32) for axis, name in ((2, "d"), (3, "h"), (4, "w"))}
    dynamic = {0: torch.export.Dim("batch", min=1, max=8), **sides}
    example = image(batch=2, shape=(32, 48, 64))
    exported = torch.export.export(network, (example,), dynamic_shapes={"x": dynamic}).module()
    other = image(batch=3, shape=(64, 32, 48))
    with torch.no_grad():
        torch.testing.assert_close(exported(other), network(other), atol=1e-6, rtol=1e-5)


WIDTHS = {"in_channels": 1, "out_channels": 2, "base_filters": 2}


def published_state(network, fill=None):
    """The network's entries under names like the published ones, with further entries of the published file."""
    state = {"projection_head.0.weight": torch.zeros(32, 16)}
    for i, (key, value) in enumerate(network.state_dict().items()):
        part, kind = key.split(".")[0], key.rpartition(".")[2]
        state[f"{part}.entry_{i}.{kind}"] = value.clone() if fill is None else torch.full_like(value, fill + i)
    return state | {"contrastive_class_selector_0.0.weight": torch.zeros(32, 32)}


def test_reference_entries_are_copied_in_order_without_heads():
    network = VNet(**WIDTHS)
    assert load_reference_backbone(network, published_state(network, fill=3)) is network
    for i, value in enumerate(network.state_dict().values()):
        assert torch.equal(value, torch.full_like(value, 3 + i))


def test_weights_are_copied_and_not_shared():
    network = VNet(**WIDTHS)
    state = published_state(network, fill=3)
    load_reference_backbone(network, state)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert state["encoder.entry_0.weight"].eq(3).all()


def test_missing_entry_is_refused_with_both_counts():
    network = VNet(**WIDTHS)
    state, count = published_state(network), len(network.state_dict())
    del state["encoder.entry_5.running_var"]
    with pytest.raises(ValueError, match=f"{count - 1} .*{count}"):
        load_reference_backbone(network, state)


def test_network_without_batch_norm_is_refused():
    state = published_state(VNet(**WIDTHS))
    with pytest.raises(ValueError, match="entries"):
        load_reference_backbone(VNet(**WIDTHS, norm=None), state)


@pytest.mark.parametrize("change", [{"in_channels": 2}, {"out_channels": 3}, {"base_filters": 4}])
def test_other_widths_are_refused_naming_the_entry_and_both_shapes_and_nothing_is_loaded(change):
    state = published_state(VNet(**WIDTHS), fill=3)
    network = VNet(**WIDTHS | change)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"(encoder|decoder)\.entry_\d+\.\w+"):
        load_reference_backbone(network, state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_unrelated_state_dict_is_refused():
    with pytest.raises(ValueError, match=r" 0 .*entries"):
        load_reference_backbone(VNet(**WIDTHS), {"layer.weight": torch.zeros(2)})
