# SPDX-License-Identifier: Apache-2.0
"""Deep supervision, against loops over cells."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.supervised import DeepSupervisionTerm, class_fractions
from scripts.prototypes.voxels import NO_CLASS
from tests.losses.batches import make_batch

K = 3


def batch_of(labelled=1, unlabelled=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cases = labelled + unlabelled
    return make_batch(
        logits=torch.randn(cases, K, 4, 4, 4, generator=generator, requires_grad=True),
        features=torch.randn(cases, 5, 4, 4, 4, generator=generator),
        labels=torch.randint(K, (labelled, 4, 4, 4), generator=generator),
        teacher_logits=torch.randn(unlabelled, K, 4, 4, 4, generator=generator),
        deep_features={
            "fine": torch.randn(cases, 5, 2, 2, 2, generator=generator, requires_grad=True),
            "coarse": torch.randn(cases, 7, 1, 1, 1, generator=generator, requires_grad=True),
        },
    )


def fractions_by_loop(labels, cells):
    result = torch.zeros(len(labels), K, *cells)
    side = [n // c for n, c in zip(labels.shape[1:], cells, strict=True)]
    for b, x, y, z in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        label = int(labels[b, x, y, z])
        result[b, label, x // side[0], y // side[1], z // side[2]] += 1 / math.prod(side)
    return result


def test_fractions_equal_a_loop_and_cells_of_ignored_voxels_do_not_count():
    labels = batch_of(labelled=2).labels
    fractions, counted = class_fractions(labels, K, (2, 2, 2))
    assert torch.allclose(fractions, fractions_by_loop(labels, (2, 2, 2))) and counted.all()
    labels[1, 2:, :2, :2] = NO_CLASS
    _, counted = class_fractions(labels, K, (2, 2, 2))
    assert (~counted).nonzero().tolist() == [[1, 1, 0, 0]]


def test_a_cell_with_one_labelled_slice_has_the_fractions_of_that_slice():
    labels = torch.full((1, 4, 4, 4), NO_CLASS)
    labels[0, 1] = torch.tensor([[0, 1, 2, 2], [1, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    fractions, counted = class_fractions(labels, K, (2, 2, 2))
    assert counted[0, 0].all() and not counted[0, 1].any()
    expected = [[[1, 3, 0], [1, 0, 3]], [[4, 0, 0], [3, 1, 0]]]  # of four voxels, by row, column and class
    assert torch.equal(fractions[0, :, 0] * 4, torch.tensor(expected, dtype=torch.float32).movedim(-1, 0))
    assert not fractions[0, :, 1].any()


def by_loop(term, batch, labels):
    total = 0.0
    for (name, weight), head in zip(term.layers.items(), term.heads, strict=True):
        probabilities = head(batch.deep_features[name][: len(labels)]).softmax(dim=1)
        target = fractions_by_loop(labels, probabilities.shape[2:])
        cells = probabilities[:, 0].numel()
        cross_entropy = -sum(
            t * math.log(p) for t, p in zip(target.flatten().tolist(), probabilities.flatten().tolist(), strict=True)
        )
        dice = [
            1 - (2 * (probabilities[:, c] * target[:, c]).sum() + 1e-5)
            / (probabilities[:, c].sum() + target[:, c].sum() + 1e-5)
            for c in range(1, K)
            if target[:, c].sum() > 0
        ]  # fmt: skip
        total += weight * (cross_entropy / cells + float(sum(dice) / len(dice)))
    return total


def test_the_last_cell_may_reach_beyond_the_patch():
    """Side 20 at an eighth of the resolution: cells of voxels 0-7, 8-15 and 16-19."""
    labels = torch.zeros(1, 8, 8, 20, dtype=torch.long)
    labels[..., 6:9], labels[..., 18:] = 1, 1
    fractions, counted = class_fractions(labels, 2, (1, 1, 3))
    assert fractions[0, 1].flatten().tolist() == pytest.approx([2 / 8, 1 / 8, 2 / 4])
    assert fractions.sum(dim=1).flatten().tolist() == pytest.approx([1.0] * 3) and bool(counted.all())


@pytest.mark.parametrize("pseudo_labels", [False, True])
def test_the_loss_equals_a_loop_over_layers_and_cells(pseudo_labels):
    batch = batch_of()
    term = DeepSupervisionTerm({"fine": 0.5, "coarse": 0.25}, [5, 7], K, pseudo_labels=pseudo_labels)
    labels = torch.cat([batch.labels, batch.teacher_logits.argmax(dim=1)]) if pseudo_labels else batch.labels
    with torch.no_grad():
        assert float(term(batch)) == pytest.approx(by_loop(term, batch, labels), abs=1e-5)


def test_gradients_reach_the_cases_that_count():
    batch = batch_of()
    DeepSupervisionTerm({"fine": 1.0}, [5], K)(batch).backward()
    gradient = batch.deep_features["fine"].grad
    assert gradient[0].abs().sum() > 0 and gradient[1].eq(0).all()


def test_a_batch_that_is_ignored_as_a_whole_gives_no_loss():
    batch = batch_of()
    batch.labels.fill_(NO_CLASS)
    loss = DeepSupervisionTerm({"fine": 1.0}, [5], K)(batch)
    loss.backward()
    assert float(loss.detach()) == 0.0 and batch.deep_features["fine"].grad.eq(0).all()


@pytest.mark.parametrize(("layers", "channels"), [({}, []), ({"fine": 1.0}, [5, 7])])
def test_layers_and_channels_must_match(layers, channels):
    with pytest.raises(ValueError, match=r"channels"):
        DeepSupervisionTerm(layers, channels, K)


def test_unlabelled_voxels_without_a_pseudo_label_do_not_count():
    batch = batch_of()
    batch.teacher_logits.fill_(math.nan)
    term = DeepSupervisionTerm({"fine": 1.0}, [5], K, pseudo_labels=True)
    term(batch).backward()
    assert batch.deep_features["fine"].grad[0].abs().sum() > 0 and batch.deep_features["fine"].grad[1].eq(0).all()
