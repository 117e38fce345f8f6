# SPDX-License-Identifier: Apache-2.0
"""Learned weights, and which embeddings are kept, on a few small embeddings."""

from __future__ import annotations

import copy

import pytest
import torch

from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors, choose_embeddings, embeddings_per_image, select_indices


def first_number(selector):
    """Make a selector's score the sigmoid of an embedding's first number (in evaluation mode, for numbers above 0)."""
    with torch.no_grad():
        selector[0].weight.copy_(torch.eye(2))
        selector[0].bias.zero_()
        selector[1].eps = 1e-12
        selector[3].weight.copy_(torch.tensor([[1.0, 0.0]]))
        selector[3].bias.zero_()


@pytest.fixture
def selectors():
    made = ClassSelectors(2, 2, "normalised").eval()
    for selector in (*made.feature, *made.memory):
        first_number(selector)
    return made


ROWS = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])


def test_feature_weights_are_scores_of_the_embeddings_as_they_are_over_their_mean(selectors):
    scores = torch.tensor([3.0, 1.0, 2.0]).sigmoid()
    torch.testing.assert_close(selectors.feature_weights(1, ROWS), scores / scores.mean())


def test_memory_weights_are_scores_of_normalised_embeddings_over_their_mean(selectors):
    scores = torch.tensor([0.6, 1.0, 1.0]).sigmoid()
    torch.testing.assert_close(selectors.memory_weights(1, ROWS), scores / scores.mean())


@pytest.mark.parametrize("weighting", ["reference", "none"])
def test_memory_weights_of_the_published_code_are_ones(weighting):
    weights = ClassSelectors(2, 2, weighting).eval().memory_weights(0, ROWS)
    torch.testing.assert_close(weights, torch.ones(3))


def test_reference_moves_memory_statistics_and_none_has_no_memory_selectors():
    reference = ClassSelectors(1, 2, "reference")
    reference.memory_weights(0, ROWS)
    assert reference.memory[0][1].num_batches_tracked == 1
    assert len(ClassSelectors(3, 2, "none").memory) == 0


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match=r"memory_weighting.*'mean'"):
        ClassSelectors(2, 2, "mean")


def test_loss_multiplies_each_distance_by_both_weights(selectors):
    memory = PrototypeMemory(2, 2, 4)
    memory.update({1: torch.tensor([[1.0, 0.0], [0.0, 2.0]])})
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0]], requires_grad=True)
    loss = ContrastivePrototypeLoss(memory, selectors=selectors).eval()
    w = torch.tensor([2.0, 0.0]).sigmoid()
    v = torch.tensor([1.0, 0.0]).sigmoid()
    w, v = w / w.mean(), v / v.mean()
    expected = (w[0] * v[1] + w[1] * v[0]) / 4  # the other two pairs have the same direction
    value = loss(features, torch.tensor([1, 1]))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert selectors.feature[1][3].weight.grad.abs().sum() > 0
    assert selectors.memory[1][3].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in selectors.feature[0].parameters())


def test_selectors_judge_features_without_moving_them(selectors):
    """All features have the prototypes' direction, so a gradient could reach them only through the weights."""
    memory = PrototypeMemory(2, 2, 4)
    memory.update({1: torch.tensor([[1.0, 0.0], [2.0, 0.0]])})
    features = torch.tensor([[2.0, 0.0], [3.0, 0.0]], requires_grad=True)
    ContrastivePrototypeLoss(memory, selectors=selectors)(features, torch.tensor([1, 1])).backward()
    assert features.grad.abs().max() < 1e-7


@pytest.mark.parametrize(("selection", "expected"), [("lowest", [1, 2]), ("highest", [0, 2])])
def test_published_codes_keep_the_lowest_scores_in_ascending_order(selection, expected, selectors):
    assert torch.equal(choose_embeddings(0, ROWS, 2, selection, selectors=selectors), ROWS[expected])


def test_no_selector_is_evaluated_where_all_features_fit(selectors):
    before = copy.deepcopy(selectors.train().state_dict())
    assert torch.equal(choose_embeddings(0, ROWS, 3, "lowest", selectors=selectors), ROWS)
    assert all(torch.equal(value, before[key]) for key, value in selectors.state_dict().items())
    choose_embeddings(0, ROWS, 2, "lowest", selectors=selectors)
    assert selectors.feature[0][1].num_batches_tracked == 1


def test_ranking_by_selectors_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'highest'.*selector"):
        choose_embeddings(0, ROWS, 3, "highest")


def test_selectors_restored_from_a_state_go_on_as_if_never_stopped():
    selectors = ClassSelectors(2, 2, "normalised")
    selectors.feature_weights(0, ROWS)
    restored = ClassSelectors(2, 2, "normalised")
    restored.load_state_dict(copy.deepcopy(selectors.state_dict()))
    assert torch.equal(selectors.feature_weights(0, ROWS + 1), restored.feature_weights(0, ROWS + 1))
    assert torch.equal(selectors.feature[0][1].running_var, restored.feature[0][1].running_var)


def test_embeddings_that_are_not_finite_are_left_out_before_anything_is_ranked(selectors):
    rows = torch.cat([ROWS[:1], torch.tensor([[float("nan"), 0.0], [0.0, float("inf")]]), ROWS[1:]])
    assert torch.equal(choose_embeddings(0, rows, 2, "lowest", selectors=selectors), ROWS[[1, 2]])
    probabilities = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.3])
    assert torch.equal(choose_embeddings(0, rows, 2, "confidence", probabilities), ROWS[[2, 1]])
    assert torch.equal(choose_embeddings(0, rows, 3, "lowest", selectors=selectors), ROWS)


def test_no_embedding_gives_no_embedding(selectors):
    assert choose_embeddings(0, ROWS[:0], 2, "highest", selectors=selectors).shape == (0, 2)


SCORES = torch.tensor([0.3, 0.9, 0.1, 0.5])


@pytest.mark.parametrize("selection", ["highest", "confidence"])
def test_highest_keeps_the_highest_best_first(selection):
    assert select_indices(4, 2, selection, SCORES).tolist() == [1, 3]


def test_lowest_keeps_the_lowest_best_first():
    assert select_indices(4, 3, "lowest", SCORES).tolist() == [2, 0, 3]


@pytest.mark.parametrize("selection", ["confidence", "highest", "lowest"])
def test_ties_keep_their_order(selection):
    assert select_indices(5, 3, selection, torch.ones(5)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("selection", ["random", "confidence", "highest", "lowest"])
@pytest.mark.parametrize("limit", [4, 9])
def test_embeddings_that_all_fit_keep_their_order(selection, limit):
    assert select_indices(4, limit, selection, SCORES).tolist() == [0, 1, 2, 3]


def test_random_embeddings_are_distinct_and_any_embedding_may_come():
    torch.manual_seed(0)
    drawn = [select_indices(4, 2, "random").tolist() for _ in range(100)]
    assert all(len(set(rows)) == 2 for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) == 12  # ordered pairs of four


def test_random_needs_no_scores_and_repeats_with_the_generator():
    torch.manual_seed(3)
    first = select_indices(50, 10, "random").tolist()
    torch.manual_seed(3)
    assert select_indices(50, 10, "random").tolist() == first


@pytest.mark.parametrize("count", [1, 9])
def test_unknown_selection_is_refused_even_if_all_embeddings_fit(count):
    with pytest.raises(ValueError, match=r"selection.*'best'"):
        select_indices(count, 4, "best", SCORES)


@pytest.mark.parametrize("selection", ["confidence", "highest", "lowest"])
def test_ranking_without_scores_is_refused(selection):
    with pytest.raises(ValueError, match=selection):
        select_indices(4, 2, selection)


@pytest.mark.parametrize(
    ("capacity", "images", "classes", "sampling", "expected"),
    [
        (9, 3, 2, "image", 3),
        (5, 2, 2, "image", 2),  # 2.5: half goes to the even number below ...
        (7, 2, 2, "image", 4),  # ... and 3.5 to the one above
        (1, 9, 2, "image", 1),  # at least 1
        (9, 3, 5, "class", 5),  # 5 / 3 * 3
        (8, 2, 4, "class", 5),  # 4 / 3 * 4 = 5.33
        (4, 2, 4, "class", 2),  # 4 / 3 * 2 = 2.67
        (4, 4, 2, "class", 1),  # 0.67, never none
    ],
)
def test_embeddings_per_image(capacity, images, classes, sampling, expected):
    assert embeddings_per_image(capacity, images, classes, sampling) == expected


def test_unknown_rules_of_sampling_are_refused():
    with pytest.raises(ValueError, match=r"sampling.*'voxel'"):
        embeddings_per_image(4, 2, 2, "voxel")
