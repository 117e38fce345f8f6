# SPDX-License-Identifier: Apache-2.0
"""Which of a few embeddings are kept."""

from __future__ import annotations

import pytest
import torch

from scripts.prototypes.selectors import embeddings_per_image, select_indices

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
