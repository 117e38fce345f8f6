# SPDX-License-Identifier: Apache-2.0
"""Boxes, by counting voxels; mixtures of tiny cases whose losses are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from scripts.losses.mixing import CopyPasteTerm, part_losses, random_box
from scripts.prototypes.voxels import NO_CLASS
from tests.losses.batches import make_batch


def extents(box):
    """First and last voxel of the box along each axis."""
    where = box.nonzero()
    return list(zip(where.min(dim=0).values.tolist(), where.max(dim=0).values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("shape", "fraction", "sides"),
    [
        ((9, 6, 3), 2 / 3, [6, 4, 2]),
        ((112, 112, 80), 2 / 3, [74, 74, 53]),  # 74.67 and 53.33, cut
        ((8, 5, 1), 0.5, [4, 2, 1]),
        ((8, 5, 1), 0.01, [1, 1, 1]),
    ],
)
def test_box_is_solid_and_has_the_fraction_of_each_side(shape, fraction, sides):
    box = random_box(shape, fraction)
    assert tuple(box.shape) == shape
    assert [last - first + 1 for first, last in extents(box)] == sides
    assert int(box.sum()) == sides[0] * sides[1] * sides[2]


def test_box_reaches_every_place_along_every_axis_by_itself():
    torch.manual_seed(0)
    places = {tuple(first for first, _ in extents(random_box((3, 4, 5), 0.5))) for _ in range(400)}
    assert places == {(d, h, w) for d in range(3) for h in range(3) for w in range(4)}  # sides 1, 2, 2


def test_box_follows_torchs_generator():
    torch.manual_seed(3)
    first, second = random_box((30, 30, 30), 0.5), random_box((30, 30, 30), 0.5)
    torch.manual_seed(3)
    assert torch.equal(random_box((30, 30, 30), 0.5), first) and not torch.equal(first, second)


UNDECIDED = (math.log(2) + 2 / 3) / 2
"""S of a part that holds one class, where p = 1/2 everywhere: cross-entropy log 2, Dice (1 / 1.5 + 0) / 2 = 1/3."""


class Network:
    """A forward pass that records its images and computes logits from them."""

    def __init__(self, read):
        self.read, self.images = read, None

    def __call__(self, images, keep_statistics=True, fixed_parameters=False):
        assert keep_statistics, "mixtures must not enter the running statistics"
        self.images = images
        return self.read(images), None


def sure(images):
    """Certain logits of the class that the image holds at each voxel."""
    return 50.0 * one_hot(images[:, 0].long(), 2).movedim(-1, 1).float()


def undecided(images):
    return torch.zeros(len(images), 2, *images.shape[2:])


def step_of(labels, pseudo_labels, network, images=None):
    """A step whose images are the classes themselves, `(L, D, H, W)` and `(U, D, H, W)`."""
    cases = torch.cat([labels, pseudo_labels])[:, None].float() if images is None else images
    return make_batch(
        logits=torch.zeros(len(cases), 2, *cases.shape[2:], requires_grad=True),
        features=torch.zeros(len(cases), 1, *cases.shape[2:]),
        labels=labels,
        teacher_logits=sure(pseudo_labels[:, None]).requires_grad_(),
        images=cases,
        forward_pass=network,
    )


def ones(cases, value=1, shape=(3, 6, 9)):
    return torch.full((cases, *shape), value)


def test_voxels_without_a_pseudo_label_are_left_out():
    labels, pseudo = ones(1), ones(1)
    images = torch.cat([labels, 1 - pseudo])[:, None].float()  # the network is wrong about the unlabelled case
    step = step_of(labels, pseudo, Network(sure), images)
    assert CopyPasteTerm()(step).item() > 1
    with torch.no_grad():
        step.teacher_logits.fill_(float("nan"))
    assert CopyPasteTerm()(step).item() == pytest.approx(0.0, abs=1e-4)


def test_each_case_is_pasted_into_the_other_and_labels_go_with_the_images():
    """A network that is right about both parts has no loss, for any position of the box."""
    torch.manual_seed(0)
    network = Network(sure)
    labels, pseudo = torch.randint(2, (1, 3, 6, 9)), torch.randint(2, (1, 3, 6, 9))
    step = step_of(labels, pseudo, network)
    assert CopyPasteTerm()(step).item() == pytest.approx(0.0, abs=1e-4)
    # Every voxel of both cases is seen once: what is missing from one mixture is in the other.
    assert torch.equal(network.images.sum(dim=0)[0], (labels + pseudo)[0].float())


@pytest.mark.parametrize(("fraction", "inside"), [(2 / 3, 2 * 4 * 6), (0.5, 1 * 3 * 4)])
def test_first_mixture_holds_the_unlabelled_case_in_a_box_of_that_fraction(fraction, inside):
    network = Network(undecided)
    CopyPasteTerm(fraction=fraction)(step_of(ones(1), ones(1, 0), network))
    assert network.images[0].eq(0).sum() == inside and network.images[1].eq(1).sum() == inside


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_loss_of_an_undecided_network(alpha):
    term = CopyPasteTerm(unlabelled_weight=alpha)
    value = term(step_of(ones(2), ones(2, 0), Network(undecided)))
    assert value.item() == pytest.approx(2 * (1 + alpha) * UNDECIDED, abs=1e-4)


def test_unlabelled_weight_is_that_of_the_unlabelled_part_both_ways():
    def half_sure(images):
        return sure(images) * images.eq(0)  # right about the unlabelled part, undecided on the labelled one

    step = step_of(ones(1), ones(1, 0), Network(half_sure))
    assert CopyPasteTerm(unlabelled_weight=7.0)(step).item() == pytest.approx(2 * UNDECIDED, abs=1e-4)


@pytest.mark.parametrize(("labelled", "unlabelled"), [(1, 3), (3, 1), (3, 2), (2, 3)])
def test_the_rarer_kind_of_case_is_used_several_times(labelled, unlabelled):
    network = Network(undecided)
    values = torch.arange(labelled + unlabelled, dtype=torch.float32).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 3, 6, 9)
    CopyPasteTerm()(step_of(ones(labelled), ones(unlabelled, 0), network, images=values))
    pairs = max(labelled, unlabelled)
    assert len(network.images) == 2 * pairs
    for i, mixture in enumerate(network.images):
        expected = {float(i % pairs % labelled), float(labelled + i % pairs % unlabelled)}
        assert set(mixture.unique().tolist()) == expected


def test_largest_component_of_a_pseudo_label_is_kept_on_request():
    """The far voxel is a second part: the network that sees it there is right only without the option."""
    pseudo = torch.zeros(1, 3, 6, 9, dtype=torch.int64)
    pseudo[0, :2, :, :5] = 1
    pseudo[0, 2, 5, 8] = 1
    torch.manual_seed(0)
    step = step_of(ones(1, 0), pseudo, Network(sure))
    assert CopyPasteTerm()(step).item() == pytest.approx(0.0, abs=1e-4)
    assert CopyPasteTerm(largest_component=True)(step).item() > 0.1


def test_gradient_reaches_the_mixtures_logits_and_not_the_teacher():
    logits = []

    def read(images):
        logits.append(undecided(images).requires_grad_())
        return logits[0]

    step = step_of(ones(1), ones(1, 0), Network(read))
    CopyPasteTerm()(step).backward()
    assert logits[0].grad.abs().sum(dim=1).gt(0).all(), "every voxel of both mixtures is supervised"
    assert step.teacher_logits.grad is None


@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 0), (0, 2)])
def test_a_step_with_one_kind_of_case_makes_no_pass_and_gives_zero_with_zero_gradient(labelled, unlabelled):
    step = step_of(ones(labelled), ones(unlabelled), None)
    value = CopyPasteTerm()(step)
    value.backward()
    assert value.item() == 0 and step.logits.grad.eq(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, r"fraction.* 1\.0"),
        ({"unlabelled_weight": -1.0}, "unlabelled_weight.* -1"),
    ],
)
def test_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CopyPasteTerm(**options)


def part_loss_by_hand(logits, targets, part, half):
    """Dice plus cross-entropy, halved, of the counted voxels of a part of a half, case by case and class by class."""
    cases = range(len(logits) // 2 * half, len(logits) // 2 * (half + 1))
    probabilities, cross_entropies, dices = logits.softmax(dim=1), [], []
    for i in cases:
        counted = part & (targets[i] != NO_CLASS)
        for k in range(logits.shape[1]):
            p, t = probabilities[i, k][counted], (targets[i][counted] == k).float()
            dices.append(1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
            cross_entropies += list(-p[t == 1].log())
    ce = sum(cross_entropies) / len(cross_entropies) if cross_entropies else 0.0
    return (ce + sum(dices) / len(dices)) / 2


@pytest.mark.parametrize("ignored", ["nothing", "some voxels", "the whole box"])
def test_losses_of_the_parts_equal_loops_over_cases_and_classes(ignored):
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 3, 3, 4, 5), torch.randint(2, (4, 3, 4, 5))  # class 2 is absent
    box = random_box((3, 4, 5), 0.6)
    where = {"nothing": box & ~box, "some voxels": torch.rand(3, 4, 5) < 0.3, "the whole box": box}[ignored]
    targets[1:3] = targets[1:3].masked_fill(where, NO_CLASS)
    if ignored == "the whole box":
        targets = targets.masked_fill(where, NO_CLASS)
    results = []
    for compute in (
        lambda x: part_losses(x, targets, box),
        lambda x: torch.stack(
            [torch.stack([part_loss_by_hand(x, targets, part, half) for part in (box, ~box)]) for half in (0, 1)]
        ),
    ):
        own = logits.clone().requires_grad_()
        values = compute(own)
        (values * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
        results.append((values.detach(), own.grad))
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)
