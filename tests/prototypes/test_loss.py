# SPDX-License-Identifier: Apache-2.0
"""The contrastive loss by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from scripts.networks.heads import ProjectionHead
from scripts.prototypes.loss import ContrastivePrototypeLoss, average_over_classes, class_contrast, cosine_distance
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.voxels import NO_CLASS


def test_distance_depends_on_the_angle_alone():
    features = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-7.0, 0.0], [3.0, 4.0]])
    prototypes = torch.tensor([[10.0, 0.0], [0.0, 0.1], [4.0, 3.0]])
    expected = torch.tensor([[0.0, 1.0, 0.2], [1.0, 0.0, 0.4], [2.0, 1.0, 1.8], [0.4, 0.2, 0.04]])
    torch.testing.assert_close(cosine_distance(features, prototypes), expected, atol=1e-6, rtol=0)


def test_zero_embedding_is_at_distance_one_and_has_a_finite_gradient():
    features = torch.zeros(1, 3, requires_grad=True)
    distance = cosine_distance(features, torch.eye(3))
    assert distance.tolist() == [[1.0, 1.0, 1.0]]
    distance.sum().backward()
    assert features.grad.isfinite().all()


def test_class_contrast_is_the_mean_over_all_pairs():
    features, prototypes = torch.randn(5, 4), torch.randn(3, 4)
    total = 0.0
    for f in features.double():
        for p in prototypes.double():
            total += 1 - float(f @ p / (f.norm() * p.norm()))
    assert class_contrast(features, prototypes).item() == pytest.approx(total / 15, abs=1e-6)


def test_weights_belong_to_features():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # distances 0 and 2 to the first, 1 and 1 to the second
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert class_contrast(features, prototypes).item() == pytest.approx(1.0)
    weights = torch.tensor([0.5, 1.5])
    # (0.5 * 0 + 0.5 * 1 + 1.5 * 2 + 1.5 * 1) / 4
    assert class_contrast(features, prototypes, weights).item() == pytest.approx(1.25)


def test_divisor_present_counts_contributing_classes_and_all_counts_every_class():
    losses = [torch.tensor(0.5), torch.tensor(1.0)]
    assert average_over_classes(losses, 5, "present").item() == pytest.approx(0.75)
    assert average_over_classes(losses, 5, "all").item() == pytest.approx(0.3)


def memory_of(by_class, num_classes=3, width=2):
    memory = PrototypeMemory(num_classes, width, 8)
    memory.update({c: torch.tensor(rows, dtype=torch.float32) for c, rows in by_class.items()})
    return memory


EAST = [[1.0, 0.0], [5.0, 0.0]]
NORTH = [[0.0, 1.0], [0.0, 0.3]]


def loss_of(features, labels, by_class, **options):
    loss = ContrastivePrototypeLoss(memory_of(by_class), **options)
    return loss(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))


@pytest.mark.parametrize(("direction", "expected"), [([3.0, 0.0], 0.0), ([0.0, -2.0], 1.0), ([-0.1, 0.0], 2.0)])
def test_loss_is_0_for_identical_1_for_orthogonal_and_2_for_opposite_directions(direction, expected):
    assert loss_of([direction, direction], [1, 1], {1: EAST}).item() == pytest.approx(expected, abs=1e-6)


def test_loss_stays_within_0_and_2():
    torch.manual_seed(0)
    for _ in range(20):
        memory = PrototypeMemory(3, 4, 5)
        memory.update({c: torch.randn(5, 4) for c in range(3)})
        value = ContrastivePrototypeLoss(memory)(torch.randn(30, 4) * 100, torch.randint(3, (30,))).item()
        assert -1e-6 <= value <= 2 + 1e-6


# Class 1: (3, 4) and (0, 2) to EAST are 0.4 and 1, mean 0.7. Class 2: two times north to NORTH, 0.
FEATURES, LABELS = [[3.0, 4.0], [0.0, 2.0], [0.0, 1.0], [0.0, 9.0]], [1, 1, 2, 2]


def test_divisor_present_averages_over_contributing_classes_and_all_over_every_class():
    memory = {1: EAST, 2: NORTH}
    assert loss_of(FEATURES, LABELS, memory, divisor="present").item() == pytest.approx(0.35, abs=1e-6)
    assert loss_of(FEATURES, LABELS, memory, divisor="all").item() == pytest.approx(0.7 / 3, abs=1e-6)


def test_class_without_memory_is_skipped():
    assert loss_of(FEATURES, LABELS, {1: EAST}).item() == pytest.approx(0.7, abs=1e-6)
    assert loss_of(FEATURES, LABELS, {1: EAST}, divisor="all").item() == pytest.approx(0.7 / 3, abs=1e-6)


def test_class_with_one_feature_or_one_prototype_is_skipped():
    memory = {1: EAST, 2: NORTH[:1]}
    features, labels = [*FEATURES, [-1.0, 0.0]], [*LABELS, 0]
    assert loss_of(features, labels, memory | {0: EAST}).item() == pytest.approx(0.7, abs=1e-6)


def test_voxels_of_no_class_never_count():
    features = [*FEATURES, [-1.0, -1.0], [float("nan"), 0.0]]
    assert loss_of(features, [*LABELS, NO_CLASS, NO_CLASS], {1: EAST, 2: NORTH}).item() == pytest.approx(0.35, abs=1e-6)


def test_classes_weigh_the_same_however_many_voxels_they_have():
    features, labels = FEATURES + 10 * [[0.0, 1.0]], LABELS + 10 * [2]
    assert loss_of(features, labels, {1: EAST, 2: NORTH}).item() == pytest.approx(0.35, abs=1e-6)


def test_order_and_positive_scale_of_features_do_not_matter():
    torch.manual_seed(1)
    memory = PrototypeMemory(3, 4, 5)
    memory.update({c: torch.randn(5, 4) for c in range(3)})
    loss, features, labels = ContrastivePrototypeLoss(memory), torch.randn(20, 4), torch.randint(3, (20,))
    expected = loss(features, labels)
    order = torch.randperm(20)
    torch.testing.assert_close(loss(features[order], labels[order]), expected)
    torch.testing.assert_close(loss(features * torch.rand(20, 1).add(0.1), labels), expected)
    memory.update({1: memory.prototypes(1).flip(0) * 7})
    torch.testing.assert_close(loss(features, labels), expected)


def test_maps_are_read_voxel_by_voxel():
    torch.manual_seed(2)
    memory = PrototypeMemory(2, 3, 4)
    memory.update({c: torch.randn(4, 3) for c in range(2)})
    features, labels = torch.randn(2, 3, 2, 3, 4), torch.randint(2, (2, 2, 3, 4))
    rows, flat = [], []
    for b, x, y, z in torch.cartesian_prod(*(torch.arange(n) for n in (2, 2, 3, 4))).tolist():
        rows.append(features[b, :, x, y, z])
        flat.append(labels[b, x, y, z])
    loss = ContrastivePrototypeLoss(memory)
    torch.testing.assert_close(loss(features, labels), loss(torch.stack(rows), torch.stack(flat)))


@pytest.mark.parametrize(
    ("labels", "by_class"), [([1, 1], {}), ([1, 1], {2: NORTH}), ([NO_CLASS, NO_CLASS], {1: EAST}), ([1, 2], {1: EAST})]
)
def test_no_usable_class_gives_zero_with_zero_gradient(labels, by_class):
    loss = ContrastivePrototypeLoss(memory_of(by_class), ProjectionHead(2, 2), ProjectionHead(2, 2))
    features = torch.randn(2, 2, requires_grad=True)
    value = loss(features, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert features.grad.eq(0).all()
    assert loss.projection_head[1].num_batches_tracked == 0


def test_no_usable_class_gives_zero_whatever_the_features_hold():
    features = torch.full((2, 2), float("nan"), requires_grad=True)
    value = ContrastivePrototypeLoss(memory_of({}))(features, torch.tensor([1, 1]))
    value.backward()
    assert value.item() == 0 and features.grad.eq(0).all()


def test_no_embeddings_at_all_give_zero():
    loss = ContrastivePrototypeLoss(memory_of({1: EAST}))
    assert loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).item() == 0


def two_heads(memory, **options):
    torch.manual_seed(0)
    return ContrastivePrototypeLoss(memory, ProjectionHead(3, 2), ProjectionHead(2, 2), **options)


def test_gradient_reaches_features_and_both_heads_but_not_the_memory():
    memory = memory_of({1: [[1.0, 0.5], [0.2, -1.0]]})
    loss, features = two_heads(memory), torch.randn(6, 3, requires_grad=True)
    state = copy.deepcopy(memory.state_dict())
    loss(features, torch.tensor([1, 1, 1, 1, NO_CLASS, 1])).backward()
    assert features.grad.abs().sum(1).gt(0).tolist() == [True] * 4 + [False] + [True]
    for head in (loss.projection_head, loss.prediction_head):
        assert head[0].weight.grad.abs().sum() > 0 and head[3].weight.grad.abs().sum() > 0
    assert memory.features.grad is None and not memory.features.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in memory.state_dict().items())


def test_memory_may_be_written_between_forward_and_backward():
    memory = memory_of({1: EAST})
    features = torch.randn(4, 2, requires_grad=True)
    value = ContrastivePrototypeLoss(memory)(features, torch.ones(4, dtype=torch.int64))
    memory.update({1: torch.tensor(NORTH)})
    value.backward()
    # Rows of EAST alone: for one row f the gradient of 1 - cos is -(e - cos f / |f|) / |f|, averaged over 4 rows.
    unit = torch.nn.functional.normalize(features.detach(), dim=1)
    east = torch.tensor([1.0, 0.0])
    expected = -(east - unit[:, :1] * unit) / features.detach().norm(dim=1, keepdim=True) / 4
    torch.testing.assert_close(features.grad, expected, atol=1e-6, rtol=1e-4)


class Scale(nn.Module):
    """A head that adds a constant."""

    def __init__(self, *shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, rows):
        return rows * 2 + self.shift


def test_projection_comes_before_prediction():
    loss = ContrastivePrototypeLoss(memory_of({1: EAST}), Scale(-2.0, 0.0), Scale(0.0, 4.0))
    # (1, 0) -> projection (0, 0) -> prediction (0, 4): distance 1; the other way (2, 4) -> (2, 8).
    value = loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    assert value.item() == pytest.approx(1.0, abs=1e-6)


def test_second_call_in_evaluation_mode_gives_the_same_and_changes_nothing():
    loss = two_heads(memory_of({1: EAST, 2: NORTH})).eval()
    features, labels = torch.randn(40, 3), torch.randint(3, (40,))
    state = copy.deepcopy(loss.state_dict())
    assert torch.equal(loss(features, labels), loss(features, labels))
    assert all(torch.equal(value, state[key]) for key, value in loss.state_dict().items())


class Recorder(nn.Module):
    """A head that records its input."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def forward(self, rows):
        self.seen = rows
        return rows


@pytest.mark.parametrize(("limit", "expected"), [(3, {0: 3, 1: 3, 2: 2}), (None, {0: 20, 1: 10, 2: 2})])
def test_samples_per_class_limits_the_embeddings_of_each_class(limit, expected):
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [NO_CLASS] * 6)
    features = torch.stack([labels.float(), torch.arange(38.0)], dim=1)  # each embedding holds its class and its index
    head = Recorder()
    ContrastivePrototypeLoss(memory_of({0: EAST, 1: EAST, 2: NORTH}), head, samples_per_class=limit)(features, labels)
    places = head.seen[:, 1].long()
    assert len(places.unique()) == len(places)
    assert {c: int((labels[places] == c).sum()) for c in range(3)} == expected
    assert (labels[places] != NO_CLASS).all()


def test_sampled_embeddings_follow_the_global_generator():
    labels, features = torch.ones(50, dtype=torch.int64), torch.randn(50, 2)
    loss = ContrastivePrototypeLoss(memory_of({1: EAST}), samples_per_class=5)
    torch.manual_seed(7)
    first, other = loss(features, labels), loss(features, labels)
    torch.manual_seed(7)
    assert torch.equal(loss(features, labels), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("label", [3, -2])
def test_label_out_of_range_is_refused(label):
    with pytest.raises(ValueError, match=rf"\[0, 3\).* {label}"):
        loss_of([[1.0, 0.0]] * 2, [label, label], {1: EAST})


def test_labels_that_do_not_match_the_embeddings_are_refused_with_both_counts():
    loss = ContrastivePrototypeLoss(memory_of({1: EAST}))
    with pytest.raises(ValueError, match="24 embeddings and 3 labels"):
        loss(torch.zeros(1, 2, 2, 3, 4), torch.zeros(1, 1, 1, 3, dtype=torch.int64))


def test_features_of_another_width_than_the_memory_are_refused_with_both():
    with pytest.raises(ValueError, match=r"width 3.* 2"):
        loss_of([[1.0, 0.0, 0.0]] * 2, [1, 1], {1: EAST})


def test_a_nan_in_a_feature_that_enters_is_not_hidden():
    """`GradientGuard` then undoes the step."""
    assert loss_of([[1.0, float("nan")], [1.0, 0.0]], [1, 1], {1: EAST}).isnan()


def test_half_precision_features_are_compared_in_the_memorys_precision():
    memory = memory_of({1: EAST})
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    value = ContrastivePrototypeLoss(memory)(features, torch.tensor([1, 1]))
    value.backward()
    assert value.dtype is torch.float32 and value.item() == pytest.approx(0.7, abs=1e-6)
    assert features.grad.dtype is torch.bfloat16 and features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_class": 1}, "samples_per_class.* 1"),
        ({"divisor": "some"}, "divisor.*'some'"),
    ],
)
def test_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastivePrototypeLoss(memory_of({}), **options)


@pytest.mark.parametrize(("through", "rows"), [("used", 2), ("all", 4)])
def test_heads_see_the_voxels_that_count_or_all_of_them(through, rows):
    """Class 0 has no prototypes and voxel 3 no class: they have no distance, but a batch norm may see them."""
    seen = []

    class Head(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    loss = ContrastivePrototypeLoss(memory_of({1: EAST}), Head(), embeddings_through_heads=through)
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0], [9.0, 9.0], [7.0, 7.0]])
    assert loss(features, torch.tensor([1, 1, 0, NO_CLASS])).item() == pytest.approx(0.7, abs=1e-6)
    assert seen == [rows]


def test_unknown_embeddings_through_heads_are_refused():
    with pytest.raises(ValueError, match=r"embeddings_through_heads.*'some'"):
        ContrastivePrototypeLoss(memory_of({}), embeddings_through_heads="some")


# ------------------------------------------------------------------ with a temperature


def test_with_a_temperature_it_is_the_cross_entropy_of_the_own_memory():
    # Cosines 1 with two rows of its own, 0 with two of the other class: log(2 e^2 + 2) - log(2 e^2).
    value = loss_of([[3.0, 0.0], [1.0, 0.0]], [1, 1], {1: EAST, 2: NORTH}, temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_with_a_temperature_features_are_pushed_from_other_classes_too():
    features = torch.tensor([[1.0, 1.0], [1.0, 1.0]], requires_grad=True)
    memory = memory_of({1: EAST, 2: NORTH})
    ContrastivePrototypeLoss(memory, temperature=0.5)(features, torch.tensor([1, 1])).backward()
    assert (features.grad[:, 0] < 0).all() and (features.grad[:, 1] > 0).all()


def test_with_a_temperature_a_class_alone_in_memory_contributes_nothing_and_the_reason_is_told():
    loss = ContrastivePrototypeLoss(memory_of({1: EAST}), temperature=0.1)
    assert loss(torch.ones(2, 2), torch.tensor([1, 1])).item() == 0.0
    assert "another class" in loss.missing_pairs(torch.tensor([1, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("direction", "memory"),
    [
        ([1.0, 0.0], {1: EAST, 2: NORTH}),
        ([-1.0, 0.0], {1: EAST, 2: NORTH}),
        ([-1.0, 0.0], {1: EAST, 2: [[-1.0, 0.0], [-2.0, 0.0]]}),
        ([0.0, 0.0], {1: EAST, 2: NORTH}),
        ([1.0, 0.0], {2: NORTH}),
        ([1.0, 0.0], {1: EAST}),
    ],
    ids=["identical", "opposite", "opposite and another's", "no direction", "no pair", "no other"],
)
def test_at_temperature_001_value_and_gradient_are_finite(direction, memory, dtype):
    features = torch.tensor([direction, direction], dtype=dtype, requires_grad=True)
    loss = ContrastivePrototypeLoss(memory_of(memory), temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        value = loss(features, torch.tensor([1, 1]))
    value.backward()
    assert value.isfinite() and value >= 0
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        ContrastivePrototypeLoss(memory_of({1: EAST}), temperature=temperature)
