# SPDX-License-Identifier: Apache-2.0
"""The contrast and sampling against loops over classes, embeddings and prototypes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.prototypes.loss import MIN_EMBEDDINGS, ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import NO_CLASS, draw_indices, group_by_class, sample_per_class, voxel_embeddings

CLASSES, WIDTH = 4, 3
LABELS = {
    "all classes": [0, 1, 2, 3, 3, 1, 0, 2, 2, 1, 0, 3, 1, 2],
    "an absent class and ignored voxels": [0, NO_CLASS, 2, 3, 3, NO_CLASS, 0, 2, 2, NO_CLASS, 0, 3, NO_CLASS, 2],
    "a class with one voxel": [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2],
    "one class": [2] * 14,
    "no class": [NO_CLASS] * 14,
}
STORED = {"full memory": (5, 5, 5, 5), "partly filled memory": (0, 1, 2, 5), "empty memory": (0, 0, 0, 0)}


def cosine(first, second):
    """Cosine of two vectors; 0 if one of them is zero."""
    return sum(a * b for a, b in zip(first, second, strict=True)) / (
        first.square().sum().sqrt().clamp_min(1e-12) * second.square().sum().sqrt().clamp_min(1e-12)
    )


def loss_by_loops(features, labels, memory, selectors, temperature, divisor):
    """The formulas of `class_contrast` and `class_info_nce`, pair by pair."""
    stored = [memory.prototypes(c) for c in range(CLASSES)]
    losses = []
    for c in range(CLASSES):
        own = [n for n, label in enumerate(labels.tolist()) if label == c]
        if len(own) < MIN_EMBEDDINGS or len(stored[c]) < MIN_EMBEDDINGS:
            continue
        if temperature is not None:
            if sum(len(prototypes) > 0 for prototypes in stored) < 2:
                continue
            total = 0.0
            for n in own:
                sums = [sum(torch.exp(cosine(features[n], p) / temperature) for p in rows) for rows in stored]
                total = total - torch.log(sums[c] / sum(sums))
            losses.append(total / len(own))
            continue
        of_features, of_prototypes = torch.ones(len(own)), torch.ones(len(stored[c]))
        if selectors is not None:
            of_features = selectors.feature_weights(c, features[own])
            of_prototypes = selectors.memory_weights(c, stored[c])
        total = 0.0
        for n, w in zip(own, of_features, strict=True):
            for p, v in zip(stored[c], of_prototypes, strict=True):
                total = total + w * v * (1 - cosine(features[n], p))
        losses.append(total / (len(own) * len(stored[c])))
    if not losses:
        return features[:0].sum()
    return sum(losses) / (len(losses) if divisor == "present" else CLASSES)


def memory_of(counts):
    memory = PrototypeMemory(CLASSES, WIDTH, 5)
    memory.update({c: torch.randn(n, WIDTH) for c, n in enumerate(counts)})
    return memory


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize("kind", ["distance", "temperature", "normalised", "reference", "none"])
@pytest.mark.parametrize("through", ["used", "all"])
def test_value_and_gradient_equal_loops_over_all_pairs(labels, stored, kind, through):
    torch.manual_seed(len(labels) + sum(stored))
    memory, labels = memory_of(stored), torch.tensor(labels)
    weighted = kind not in ("distance", "temperature")
    selectors = ClassSelectors(CLASSES, WIDTH, kind).eval() if weighted else None
    temperature, divisor = (0.2 if kind == "temperature" else None), ("all" if weighted else "present")
    loss = ContrastivePrototypeLoss(
        memory,
        selectors=selectors,
        samples_per_class=None,
        divisor=divisor,
        temperature=temperature,
        embeddings_through_heads=through,
    )
    features = torch.randn(len(labels), WIDTH)
    features[3] = 0.0
    results = []
    for compute in (
        lambda rows: loss(rows, labels),
        lambda rows: loss_by_loops(rows, labels, memory, selectors, temperature, divisor),
    ):
        rows = features.clone().requires_grad_()
        value = compute(rows)
        value.backward()
        gradients = [rows.grad[:3], rows.grad[4:]]  # a zero vector has no direction, and its gradient is a convention
        if selectors is not None:
            gradients += [p.grad for p in selectors.parameters() if p.grad is not None]
            selectors.zero_grad()
        results.append([value.detach(), *gradients])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


class Twice(nn.Module):
    def forward(self, rows):
        return rows * 2


@pytest.mark.parametrize("through", ["used", "all"])
@pytest.mark.parametrize("limit", [None, 2])
def test_an_unused_feature_that_is_all_nan_changes_neither_value_nor_gradient(through, limit):
    """Voxel 0 is ignored and voxel 1 is the only one of its class; `limit` takes both other voxels."""
    torch.manual_seed(0)
    memory, labels = memory_of((5, 5, 5, 5)), torch.tensor([NO_CLASS, 1, 2, 2])
    loss = ContrastivePrototypeLoss(memory, Twice(), samples_per_class=limit, embeddings_through_heads=through)
    clean = torch.randn(1, WIDTH, 1, 2, 2)
    dirty = clean.clone()
    dirty.flatten(2)[:, :, :2] = math.nan
    results = []
    for maps in (clean.requires_grad_(), dirty.requires_grad_()):
        value = loss(maps, labels.reshape(1, 1, 2, 2))
        value.backward()
        results.append((value.detach(), maps.grad.flatten(2)[:, :, 2:]))
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert results[0][0] > 0


def test_a_single_voxel_gives_zero():
    assert ContrastivePrototypeLoss(memory_of((5, 5, 5, 5)))(torch.randn(1, WIDTH), torch.tensor([1])).item() == 0


@pytest.mark.parametrize("classes", [1, 3, 200])
def test_groups_are_the_voxels_of_each_class_in_order(classes):
    torch.manual_seed(classes)
    labels = torch.randint(-1, classes, (300,))
    labels[labels == classes // 2] = NO_CLASS  # absent
    groups = group_by_class(labels, classes)
    assert [group.tolist() for group in groups] == [
        [n for n, label in enumerate(labels.tolist()) if label == c] for c in range(classes)
    ]


def test_groups_of_no_voxels_are_empty():
    assert [len(group) for group in group_by_class(torch.empty(0, dtype=torch.int64), 3)] == [0, 0, 0]


@pytest.mark.parametrize("label", [3, 260, -2])
def test_groups_of_a_label_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=rf"\[0, 3\).*{label}"):
        group_by_class(torch.tensor([0, label]), 3)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 4), (5, 3)])
def test_embeddings_of_chosen_voxels_are_those_rows_of_all(shape):
    features, chosen = torch.randn(shape), torch.tensor([4, 0, 4, 2])
    assert torch.equal(voxel_embeddings(features, chosen), voxel_embeddings(features)[chosen])


@pytest.mark.parametrize(("count", "limit"), [(5, 2), (3, 2), (1000, 1)])
def test_every_index_is_drawn_equally_often(count, limit):
    """The largest of the standardised deviations stays below 5."""
    torch.manual_seed(0)
    draws = 40 * count
    drawn = torch.stack([draw_indices(count, limit) for _ in range(draws)])
    assert all(len(set(row)) == limit for row in drawn.tolist())
    share = limit / count
    deviations = (drawn.flatten().bincount(minlength=count) - draws * share) / math.sqrt(draws * share * (1 - share))
    assert deviations.abs().max() < 5


def test_draws_follow_torchs_generator_and_leave_numpys_alone():
    torch.manual_seed(1)
    first, second = draw_indices(10**6, 8), draw_indices(10**6, 8)
    torch.manual_seed(1)
    assert torch.equal(draw_indices(10**6, 8), first) and not torch.equal(first, second)


def test_sampling_draws_from_the_voxels_of_each_class():
    torch.manual_seed(0)
    labels = torch.randint(-1, 3, (200,))
    chosen = sample_per_class(labels, 5, 20)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert labels[chosen].bincount(minlength=5).tolist() == [20, 20, 20, 0, 0]
