# SPDX-License-Identifier: Apache-2.0
"""The inferer returns logits and features, and removes its hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import pad

from scripts.errors import UserError
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet
from scripts.prototypes.voxels import pseudo_labels
from scripts.training.inferer import FeatureInferer


class Pyramid(nn.Module):
    """Five features at full, seven at half resolution; needs even sides."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv3d(1, 5, 3, padding=1)
        self.coarse = nn.Conv3d(5, 7, 2, stride=2)
        self.up = nn.ConvTranspose3d(7, 5, 2, stride=2)
        self.output = nn.Conv3d(5, 2, 1)
        self.pooled = nn.AdaptiveAvgPool3d(1)
        self.flat = nn.Flatten()
        self.fails = False
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        fine = self.fine(x)
        self.flat(self.pooled(fine))
        if self.fails:
            raise RuntimeError("out of memory")
        return self.output(self.up(self.coarse(fine)) + fine)


def image(*shape, batch=2):
    return torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(0))


def inferer(*args, **options):
    """A `FeatureInferer` for batches whose first case is labelled, all with class 1."""

    def call(images, network, weak=None):
        return FeatureInferer(*args, **options)(images, network, torch.ones(1, 1, *images.shape[2:]), weak)

    return call


def hooks_of(network):
    return [name for name, module in network.named_modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Pyramid()


@pytest.mark.parametrize("layer", ["fine", "coarse"])
def test_features_are_what_a_permanent_hook_sees_and_logits_those_of_a_plain_call(network, layer):
    seen, witness = [], copy.deepcopy(network)
    witness.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output))
    x = image(4, 6, 8)
    output = inferer(layer, divisor=2)(x, network)
    assert torch.equal(output.logits, witness(x))
    assert torch.equal(output.features, seen[0])
    assert network.calls == 1


def test_batch_holds_the_labels_as_classes_and_the_names_of_the_cases(network):
    label = torch.tensor([2.0, 0.0]).reshape(1, 1, 1, 1, 2)
    batch = FeatureInferer("fine", divisor=2)(image(1, 1, 2), network, label, cases=["a", "b"])
    assert torch.equal(batch.labels, label[:, 0].long()) and batch.labels.dtype == torch.int64
    assert (batch.num_labelled, batch.num_unlabelled) == (1, 1)
    assert list(batch.cases) == ["a", "b"]


def test_gradient_flows_through_features_and_logits(network):
    output = inferer("fine", divisor=2)(image(4, 6, 8), network)
    output.features.sum().backward(retain_graph=True)
    assert network.fine.weight.grad.abs().sum() > 0 and network.coarse.weight.grad is None
    output.logits.sum().backward()
    assert network.coarse.weight.grad.abs().sum() > 0


def test_no_hook_is_left_after_a_call(network):
    inferer("fine", divisor=2)(image(4, 6, 8), network)
    assert hooks_of(network) == []


def test_no_hook_is_left_after_an_exception(network):
    network.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        inferer("fine", divisor=2)(image(4, 6, 8), network)
    assert hooks_of(network) == []


def test_foreign_hooks_are_kept(network):
    network.fine.register_forward_hook(lambda *_: None)
    inferer("fine", divisor=2)(image(4, 6, 8), network)
    assert hooks_of(network) == ["fine"]


def test_network_can_be_copied_and_scripted_after_a_call(network):
    x = image(16, 16, 16)
    vnet = VNet(base_filters=1).eval()
    expected = inferer("decoder.stage1")(x, vnet).logits
    torch.testing.assert_close(copy.deepcopy(vnet)(x), expected)
    torch.testing.assert_close(torch.jit.script(vnet)(x), expected)


def test_odd_sides_are_padded_at_the_end_and_cropped_back(network):
    x = image(3, 5, 8)
    padded = torch.zeros(2, 1, 4, 6, 8)
    padded[:, :, :3, :5, :] = x
    output = inferer("fine", divisor=2)(x, network)
    assert torch.equal(output.logits, network(padded)[:, :, :3, :5, :])
    assert torch.equal(output.features, network.fine(padded)[:, :, :3, :5, :])


def test_coarse_features_keep_the_cells_that_hold_image(network):
    x = image(3, 5, 9)
    padded = pad(x, (0, 3, 0, 3, 0, 1))  # to sides 4, 8, 12
    output = inferer("coarse", divisor=4)(x, network)
    assert output.logits.shape == (2, 2, 3, 5, 9)
    # Cells of two voxels: 2, 3 and 5 of them touch the image.
    assert torch.equal(output.features, network.coarse(network.fine(padded))[:, :, :2, :3, :5])


def test_the_divisor_determines_the_padding(network):
    seen = []
    network.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[2:])))
    for divisor in (1, 2, 4, 16):
        inferer("fine", divisor=divisor)(image(6, 8, 10), network)
    assert seen == [(6, 8, 10), (6, 8, 10), (8, 8, 12), (16, 16, 16)]


def test_under_autocast_the_network_computes_in_bfloat16_and_the_result_is_float32(network):
    seen = []
    network.fine.register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    for dtype in (None, torch.bfloat16):
        output = inferer("fine", divisor=2, dtype=dtype, teacher=network)(image(4, 6, 8), network, image(4, 6, 8))
        assert {output.logits.dtype, output.features.dtype, output.teacher_logits.dtype} == {torch.float32}
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2


class Teacher(nn.Module):
    """Records its input, its mode and whether gradients are on."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.seen = []

    def forward(self, x):
        self.seen.append((x, self.training, torch.is_grad_enabled()))
        return torch.cat([x, x * self.scale], dim=1)


def test_teacher_sees_the_weak_images_alone_in_evaluation_mode_without_gradient(network):
    teacher, weak = Teacher().train(), image(3, 4, 5, batch=1) + 7
    output = inferer("fine", divisor=2, teacher=teacher)(image(3, 4, 5), network, weak)
    [(seen, training, grad)] = teacher.seen
    assert torch.equal(seen, pad(weak, (0, 1, 0, 0, 0, 1)))
    assert not training and not grad
    assert torch.equal(output.teacher_logits, torch.cat([weak, 2 * weak], dim=1))
    assert not output.teacher_logits.requires_grad
    assert output.logits.requires_grad and network.training


def test_a_pass_of_the_teacher_gives_its_logits_and_features_in_evaluation_mode_without_gradient(network):
    teacher = copy.deepcopy(network)
    with torch.no_grad():
        teacher.fine.weight.mul_(2)
    output = inferer("fine", divisor=2, teacher=teacher)(image(3, 4, 5), network)
    images = image(3, 4, 5, batch=1) + 1
    logits, features = output.teacher_pass(images)
    expected = inferer("fine", divisor=2)(images, teacher.eval())
    assert torch.equal(logits, expected.logits) and torch.equal(features, expected.features)
    assert not logits.requires_grad and not features.requires_grad and not teacher.training


@pytest.mark.parametrize("weak", [None, torch.empty(0, 1, 4, 6, 8)])
def test_without_weak_images_the_teacher_does_not_run(network, weak):
    teacher = Teacher()
    output = inferer("fine", divisor=2, teacher=teacher)(image(4, 6, 8), network, weak)
    assert output.teacher_logits is None and output.weak_images is None and teacher.seen == []


def test_without_a_teacher_there_are_no_teacher_logits(network):
    output = inferer("fine", divisor=2)(image(4, 6, 8), network, image(4, 6, 8))
    assert output.teacher_logits is None and output.teacher_pass is None
    assert network.calls == 1


def test_unknown_layer_is_refused_by_name_with_a_list_of_layers(network):
    with pytest.raises(ValueError, match=r"decoder\.last.*feature_layer.*fine.*coarse"):
        inferer("decoder.last", divisor=2)(image(4, 6, 8), network)
    assert network.calls == 0


@pytest.mark.parametrize("layer", ["flat", "never"])
def test_layer_without_a_feature_map_is_refused_by_name(network, layer):
    network.never = nn.Identity()
    with pytest.raises(ValueError, match=f"{layer}.*feature_layer"):
        inferer(layer, divisor=2)(image(4, 6, 8), network)
    assert hooks_of(network) == []


def test_layer_of_a_wrapped_network_has_the_name_it_has_in_the_network(network):
    class Wrapper(nn.Module):  # as DistributedDataParallel
        def __init__(self):
            super().__init__()
            self.module = network

        def forward(self, x):
            return self.module(x)

    x = image(4, 6, 8)
    expected = inferer("fine", divisor=2)(x, network)
    output = inferer("fine", divisor=2)(x, Wrapper())
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.features, expected.features)


# Layers that give more channels than there are classes (2). MONAI's UNet with a first stride of 2 has no such layer at
# full resolution: only its last convolution lies there, and that has as many channels as classes.
MONAI_NETWORKS = [
    pytest.param(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "model.1", 4, 16, 2, id="UNet-strided"),
    pytest.param(UNet(3, 1, 2, (8, 16, 32), (1, 2)), "model.1", 2, 16, 1, id="UNet-full-resolution"),
    pytest.param(
        SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)), "up_layers.1", 4, 8, 1, id="SegResNet"
    ),
    pytest.param(
        DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(8, 16, 32)), "upsamples.1", 4, 8, 1, id="DynUNet"
    ),
    pytest.param(VNet(base_filters=4), "decoder.stage1", 16, 4, 1, id="VNet"),
    pytest.param(VNet(base_filters=4), "encoder.stage3", 16, 16, 4, id="VNet-coarse"),
]


@pytest.mark.parametrize(("net", "layer", "divisor", "channels", "stride"), MONAI_NETWORKS)
def test_networks_of_monai_give_embeddings_by_naming_a_layer(net, layer, divisor, channels, stride):
    shape = (18, 16, 21)
    x = image(*shape)
    padded = pad(x, [n for side in reversed(shape) for n in (0, -side % divisor)])
    seen, witness = [], copy.deepcopy(net.eval())
    # A copy, because a later layer that works in place would change what was seen.
    witness.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output.clone()))
    with torch.no_grad():
        output = inferer(layer, divisor=divisor)(x, net)
        logits = witness(padded)
    cells = [-(-side // stride) for side in shape]
    assert output.features.shape == (2, channels, *cells)
    assert torch.equal(output.features, seen[0][:, :, : cells[0], : cells[1], : cells[2]])
    assert torch.equal(output.logits, logits[:, :, : shape[0], : shape[1], : shape[2]])


def test_terms_get_the_images_and_a_pass_of_their_own_like_the_steps(network):
    x, weak = image(4, 6, 8), image(4, 6, 8, batch=1)
    output = inferer("fine", divisor=4)(x, network, weak=weak)
    assert torch.equal(output.images, x) and torch.equal(output.weak_images, weak)
    logits, features = output.forward_pass(x)  # padded and cropped as the step's own: 6 is not a multiple of 4
    assert torch.equal(logits, output.logits) and torch.equal(features, output.features)
    features.sum().backward()
    assert network.fine.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("keep", "recorded"), [(True, 1), (False, 2)])
def test_a_terms_own_pass_records_statistics_only_if_asked(keep, recorded):
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    output = inferer("0", divisor=1)(image(4, 4, 4), network)
    output.forward_pass(image(4, 4, 4) + 5, keep_statistics=keep)
    assert network[1].num_batches_tracked == recorded


def test_a_pass_with_fixed_parameters_gives_the_images_the_same_gradient(network):
    output = inferer("fine", divisor=4)(image(4, 8, 8), network)
    gradients = []
    for fixed in (False, True):
        moved = image(4, 8, 8).requires_grad_()
        network.zero_grad()
        logits, _ = output.forward_pass(moved, fixed_parameters=fixed)
        logits.square().sum().backward()
        gradients.append(moved.grad)
        assert (network.fine.weight.grad is None) == fixed
    assert torch.equal(*gradients)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_parameters_that_were_fixed_before_stay_fixed(network):
    network.fine.weight.requires_grad_(False)
    output = inferer("fine", divisor=4)(image(4, 8, 8), network)
    output.forward_pass(image(4, 8, 8), fixed_parameters=True)
    assert not network.fine.weight.requires_grad and network.fine.bias.requires_grad


def step_of(inferer, network, images):
    """Logits, and gradients of a loss of the step's own pass and of a further pass with adversarial gradients."""
    torch.manual_seed(3)
    network.zero_grad()
    batch = inferer(images, network, torch.ones(1, 1, *images.shape[2:]))
    moved = images.clone().requires_grad_()
    probed, _ = batch.forward_pass(moved, fixed_parameters=True)
    direction = torch.autograd.grad(probed.square().sum(), moved)[0]
    further, features = batch.forward_pass(images + direction)
    (
        batch.logits.square().mean() + batch.features.mean() + further.square().mean() + features.square().mean()
    ).backward()
    return [batch.logits, direction, *(p.grad for p in network.parameters()), *network.buffers()]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: VNet(base_filters=2, norm="instance", dropout_prob=0.3), "decoder.stage1"),
        (lambda: ResidualUNet(widths=(4, 8), blocks=(1, 2), dropout_prob=0.3), "decoder.0"),
    ],
)
def test_checkpointed_stages_give_the_same_numbers_and_keep_less(build, layer, dtype):
    torch.manual_seed(0)
    plain = build()
    checkpointed, kept = copy.deepcopy(plain), []
    for network, flag in ((plain, False), (checkpointed, True)):
        own = FeatureInferer(layer, dtype=dtype, activation_checkpointing=flag)
        elements = []
        with saved_tensors_hooks(lambda x, seen=elements: (seen.append(x.numel()), x)[1], lambda x: x):
            own(image(32, 32, 16), network, torch.ones(1, 1, 32, 32, 16))
        kept.append(sum(elements))
    network_of = {False: plain, True: checkpointed}
    first, second = (
        step_of(FeatureInferer(layer, dtype=dtype, activation_checkpointing=flag), network, image(32, 32, 16))
        for flag, network in network_of.items()
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < 0.75 * kept[0]
    assert "forward" not in vars(dict(checkpointed.named_modules())[layer])


def test_checkpointing_refuses_batch_norm():
    call = inferer("decoder.stage1", activation_checkpointing=True)
    with pytest.raises(UserError, match=r"activation_checkpointing.*network_def::norm"):
        call(image(16, 16, 16), VNet(base_filters=2, norm="batch"))


def test_stored_labels_become_certain_logits_and_nothing_where_there_is_no_class():
    stored = torch.tensor([0, 1, -1, 1]).reshape(1, 1, 1, 1, 4).expand(1, 1, 2, 4, 4).to(torch.int8)
    batch = FeatureInferer("fine")(image(2, 4, 4), Pyramid(), torch.ones(1, 1, 2, 4, 4), stored=stored)
    labels, probability = pseudo_labels(batch.target_logits, 0.0)
    assert labels[0, 0, 0].tolist() == [0, 1, -1, 1]
    assert probability[0, 0, 0, :2].tolist() == pytest.approx([1.0, 1.0])
