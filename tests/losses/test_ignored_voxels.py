# SPDX-License-Identifier: Apache-2.0
"""The content of an ignored voxel of a labelled case does not change any loss."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import nn

import scripts.losses
from scripts.losses.base import LossTerm
from scripts.losses.contrast import CompactnessTerm, LabelledContrastTerm, SeparationTerm, UnlabelledContrastTerm
from scripts.losses.correlation import CorrelationTerm
from scripts.losses.mixing import CopyPasteTerm
from scripts.losses.smoothness import SmoothnessTerm
from scripts.losses.supervised import DeepSupervisionTerm, LinearDiceTerm, SupervisedTerm
from scripts.losses.unlabelled import ConsistencyTerm, EntropyTerm, PseudoLabelTerm, SoftPseudoLabelTerm
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.voxels import NO_CLASS
from tests.losses.batches import make_batch

CLASSES, WIDTH, SHAPE = 3, 4, (2, 3, 5)


def memory():
    bank = PrototypeMemory(CLASSES, WIDTH, 4)
    draw = torch.Generator().manual_seed(5)
    bank.update({c: torch.randn(4, WIDTH, generator=draw) for c in range(CLASSES)})
    return bank


TERMS = {
    "supervised": SupervisedTerm,
    "linear_dice": LinearDiceTerm,
    "linear_dice_first": lambda: LinearDiceTerm(classes="first"),
    "copy_paste": lambda: CopyPasteTerm(fraction=0.5),
    "compactness": CompactnessTerm,
    "compactness_all": lambda: CompactnessTerm(unlabelled=True, confidence=0.0, samples_per_class=None),
    "separation": SeparationTerm,
    "contrast_labelled": lambda: LabelledContrastTerm(ContrastivePrototypeLoss(memory())),
    "contrast_unlabelled": lambda: UnlabelledContrastTerm(ContrastivePrototypeLoss(memory()), confidence=0.0),
    "smoothness": lambda: SmoothnessTerm(epsilon=1.0),
    "smoothness_own": lambda: SmoothnessTerm(epsilon=1.0, clean_pass="own"),
    "correlation": lambda: CorrelationTerm(memory(), confidence=0.0),
    "consistency": ConsistencyTerm,
    "deep_supervision": lambda: DeepSupervisionTerm({"layer": 1.0}, [WIDTH], CLASSES),
    "entropy": EntropyTerm,
    "pseudo_label": PseudoLabelTerm,
    "soft_pseudo_label": SoftPseudoLabelTerm,
}


class VoxelNetwork(nn.Module):
    """Its output at a voxel depends on that voxel only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features, self.logits = nn.Conv3d(2, WIDTH, 1), nn.Conv3d(WIDTH, CLASSES, 1)

    def forward(self, images, keep_statistics=True, fixed_parameters=False):
        features = self.features(images).tanh()
        return 3 * self.logits(features), features


def step_of(images, labels):
    network = VoxelNetwork()
    logits, features = network(images)
    unlabelled = images[len(labels) :].detach()
    teacher_logits, weak = network(unlabelled + 0.2)[0], unlabelled + 0.1
    return make_batch(
        logits, features, labels, teacher_logits, images, weak, network, deep_features={"layer": features}
    )


def case(ignored):
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, *SHAPE, generator=draw)
    labels = torch.randint(CLASSES, (2, *SHAPE), generator=draw)
    return images, labels.masked_fill(ignored, NO_CLASS)


SOME = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(1)) < 0.4


def value_of(name, images, labels):
    torch.manual_seed(9)
    return TERMS[name]()(step_of(images, labels))


@pytest.mark.parametrize("name", TERMS)
def test_what_an_ignored_voxel_looks_like_makes_no_difference(name):
    images, labels = case(SOME)
    other = images.clone()
    other[:2].movedim(1, -1)[SOME] = 10 * torch.randn(int(SOME.sum()), 2, generator=torch.Generator().manual_seed(2))
    images.requires_grad_()
    value = value_of(name, images, labels)
    assert value.isfinite() and value.item() == pytest.approx(value_of(name, other, labels).item(), abs=1e-6)
    gradient = torch.autograd.grad(value, images, allow_unused=True)[0]
    assert gradient is None or gradient[:2].movedim(1, -1)[SOME].abs().max() == 0


@pytest.mark.parametrize("name", TERMS)
def test_other_voxels_do_make_a_difference(name):
    images, labels = case(SOME)
    other = images.clone()
    other[:2].movedim(1, -1)[~SOME] += 1.0
    other[2:] += torch.randn(other[2:].shape, generator=torch.Generator().manual_seed(2))
    assert value_of(name, images, labels).item() != pytest.approx(value_of(name, other, labels).item(), abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_ignored_voxels_alone_gives_a_finite_gradient(name):
    images, labels = case(torch.ones_like(SOME))
    images.requires_grad_()
    value = value_of(name, images, labels)
    assert value.isfinite()
    gradient = torch.autograd.grad(value, images, allow_unused=True)[0]
    assert gradient is None or (gradient.isfinite().all() and gradient[:2].abs().max() == 0)


def test_supervised_loss_is_that_of_the_counted_voxels_alone():
    images, labels = case(SOME)
    step = step_of(images, labels)
    rows, classes = step.labelled_logits.movedim(1, -1)[~SOME], labels[~SOME]
    probabilities = rows.softmax(dim=1)
    cross_entropy = -probabilities[range(len(classes)), classes].log().mean()
    dice = [
        1 - 2 * probabilities[classes == c, c].sum() / (probabilities[:, c].sum() + (classes == c).sum())
        for c in range(1, CLASSES)
    ]
    expected = float((cross_entropy + sum(dice) / len(dice)).detach())
    assert SupervisedTerm()(step).item() == pytest.approx(expected, abs=1e-5)


def test_without_ignored_voxels_the_tensors_are_the_steps_own():
    images, labels = case(torch.zeros_like(SOME))
    step = step_of(images, labels)
    logits, classes = step.labelled_voxels
    assert step.ignored is None
    assert classes is step.labels and logits.data_ptr() == step.logits.data_ptr()


def leaves(kind):
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {kind}


def test_no_term_is_left_out_here():
    for module in pkgutil.iter_modules(scripts.losses.__path__):
        importlib.import_module(f"scripts.losses.{module.name}")
    ours = {kind for kind in leaves(LossTerm) if kind.__module__.startswith("scripts.")}
    assert {type(make()) for make in TERMS.values()} == ours
