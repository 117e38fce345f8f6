# SPDX-License-Identifier: Apache-2.0
"""Properties that hold for any features, drawn by hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.prototypes.loss import ContrastivePrototypeLoss, compactness, separation
from scripts.prototypes.memory import STRATEGIES, PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import NO_CLASS

CLASSES, WIDTH, SIZE = 3, 4, 5
QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)

seeds = st.integers(0, 2**31)
counts = st.integers(2, 30)
scales = st.floats(1e-3, 1e3)


def rows(seed, count, scale=1.0):
    """`(count, WIDTH)`, each of a length of its own around `scale`; never 0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return drawn * scale * torch.rand(count, 1, generator=generator, dtype=torch.float64).add(0.1)


def classes(seed, count, lowest=NO_CLASS):
    return torch.randint(lowest, CLASSES, (count,), generator=torch.Generator().manual_seed(seed + 1))


def loss_of(seed, selectors=None, scale=1.0, **options):
    """Memory of `SIZE` prototypes per class in double precision."""
    memory = PrototypeMemory(CLASSES, WIDTH, SIZE).double()
    memory.update({c: rows(seed + 10 + c, SIZE, scale) for c in range(CLASSES)})
    return ContrastivePrototypeLoss(memory, selectors=selectors, samples_per_class=None, **options)


@QUICK
@given(seeds, counts, scales, st.sampled_from(["present", "all"]))
def test_the_loss_lies_between_0_and_2_and_is_finite_with_its_gradient(seed, count, scale, divisor):
    features = rows(seed, count, scale).requires_grad_()
    value = loss_of(seed, divisor=divisor)(features, classes(seed, count))
    value.backward()
    assert -1e-9 <= value.item() <= 2 + 1e-9
    assert features.grad.isfinite().all()


@QUICK
@given(seeds, counts, st.booleans())
def test_the_order_of_features_does_not_matter(seed, count, learned):
    torch.manual_seed(seed)
    loss = loss_of(seed, ClassSelectors(CLASSES, WIDTH).double() if learned else None).eval()
    features, labels = rows(seed, count), classes(seed, count)
    order = torch.randperm(count)
    torch.testing.assert_close(loss(features[order], labels[order]), loss(features, labels))


@QUICK
@given(seeds, counts, scales)
def test_a_positive_scale_of_features_and_prototypes_does_not_matter(seed, count, scale):
    features, labels = rows(seed, count), classes(seed, count)
    lengths = torch.rand(count, 1, dtype=torch.float64).add(0.01) * scale
    expected = loss_of(seed)(features, labels)
    torch.testing.assert_close(loss_of(seed, scale=scale)(features * lengths, labels), expected)
    for function in (compactness, separation):
        torch.testing.assert_close(function(features * lengths, labels, CLASSES), function(features, labels, CLASSES))


@QUICK
@given(seeds, counts, scales)
def test_identical_directions_are_at_distance_0_and_opposite_ones_at_2(seed, count, scale):
    direction, labels = rows(seed, 1), torch.full((count,), 1)
    lengths = torch.rand(count, 1, dtype=torch.float64).add(0.01) * scale
    loss = loss_of(seed)
    loss.memory.update({1: direction * torch.arange(1.0, SIZE + 1, dtype=torch.float64)[:, None]})
    assert loss(direction * lengths, labels).item() == pytest.approx(0, abs=1e-9)
    assert loss(-direction * lengths, labels).item() == pytest.approx(2, abs=1e-9)


@QUICK
@given(seeds, counts, st.sampled_from(["reference", "normalised", "none"]))
def test_weights_have_mean_1_and_the_loss_lies_between_0_and_2_times_the_largest_weight(seed, count, weighting):
    torch.manual_seed(seed)
    selectors = ClassSelectors(CLASSES, WIDTH, weighting).double().eval()
    loss, features, labels = loss_of(seed, selectors), rows(seed, count), torch.full((count,), 1)
    with torch.no_grad():
        weights = selectors.feature_weights(1, features), selectors.memory_weights(1, loss.memory.prototypes(1))
    for weight in weights:
        assert weight.mean().item() == pytest.approx(1) and (weight > 0).all()
    assert -1e-9 <= loss(features, labels).item() <= 2 * weights[0].max() * weights[1].max()


@QUICK
@given(seeds, counts, scales, st.booleans())
def test_single_and_double_precision_agree(seed, count, scale, learned):
    torch.manual_seed(seed)
    double = loss_of(seed, ClassSelectors(CLASSES, WIDTH).double() if learned else None).eval()
    features, labels = rows(seed, count, scale), classes(seed, count)
    expected = double(features, labels).item(), compactness(features, labels, CLASSES).item()
    single = features.float()
    assert double.float()(single, labels).item() == pytest.approx(expected[0], abs=1e-5)
    assert compactness(single, labels, CLASSES).item() == pytest.approx(expected[1], abs=1e-5)


@QUICK
@given(seeds, st.sampled_from([-1.0, 0.0, 1.0]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_identical_opposite_and_zero_features_are_finite_in_half_precision_too(seed, sign, dtype):
    loss = loss_of(seed).float()
    features = (sign * loss.memory.prototypes(1)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        value = loss(features, torch.ones(SIZE, dtype=torch.int64))
    value.backward()
    assert -0.05 <= value.item() <= 2.05
    assert features.grad.isfinite().all()


updates = st.lists(st.dictionaries(st.integers(0, CLASSES - 1), st.integers(0, 3 * SIZE), max_size=CLASSES), max_size=8)


@QUICK
@given(updates, st.sampled_from(STRATEGIES), st.sampled_from([None, SIZE + 3]))
def test_the_memory_never_exceeds_its_size_and_fifo_holds_exactly_the_newest(steps, strategy, first):
    memory = PrototypeMemory(CLASSES, WIDTH, SIZE, strategy, first_insertion=first)
    seen = {c: [] for c in range(CLASSES)}
    for t, step in enumerate(steps):
        memory.update({c: torch.full((n, WIDTH), t + 1.0) + torch.arange(n)[:, None] / 100 for c, n in step.items()})
        for c, n in step.items():
            if n > 0:
                limit = (first or SIZE) if not seen[c] else SIZE
                kept = seen[c] if strategy == "fifo" else []
                seen[c] = [*[t + 1 + i / 100 for i in range(n)], *kept][:limit]
        assert memory.features.shape == (CLASSES, first or SIZE, WIDTH)
        for c, expected in seen.items():
            assert memory.prototypes(c)[:, 0].tolist() == pytest.approx(expected)


@QUICK
@given(seeds, counts, updates, st.booleans())
def test_an_update_never_changes_the_gradient_of_a_loss_that_was_computed_before_it(seed, count, steps, learned):
    def gradient(between):
        torch.manual_seed(seed)
        loss = loss_of(seed, ClassSelectors(CLASSES, WIDTH).double() if learned else None)
        features = rows(seed, count).requires_grad_()
        value = loss(features, classes(seed, count))
        for step in between:
            loss.memory.update({c: rows(seed + c, n).requires_grad_() for c, n in step.items()})
        value.backward()
        assert not loss.memory.features.requires_grad
        return features.grad

    assert torch.equal(gradient(steps), gradient([]))


@QUICK
@given(seeds, updates, st.sampled_from(STRATEGIES))
def test_the_same_updates_give_the_same_memory_and_a_restored_one_goes_on_alike(seed, steps, strategy):
    first, second = (PrototypeMemory(CLASSES, WIDTH, SIZE, strategy) for _ in range(2))
    for t, step in enumerate(steps):
        offered = {c: rows(seed + t, n) for c, n in step.items()}
        first.update(offered)
        restored = PrototypeMemory(CLASSES, WIDTH, SIZE, strategy)
        restored.load_state_dict(second.state_dict())
        restored.update(offered)
        second = restored
        assert torch.equal(first.features, second.features) and torch.equal(first.counts, second.counts)
