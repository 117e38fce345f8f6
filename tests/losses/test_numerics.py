# SPDX-License-Identifier: Apache-2.0
"""Losses of extreme features: all equal, opposite, zero, large, or without a pair; in fp32 and bf16."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from scripts.losses.contrast import CompactnessTerm, LabelledContrastTerm, SeparationTerm, UnlabelledContrastTerm
from scripts.losses.correlation import CorrelationTerm
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from tests.losses.batches import make_batch

PRECISIONS = {"fp32": (torch.float32, False), "autocast": (torch.float32, True), "bf16": (torch.bfloat16, False)}
EAST, WEST, NOWHERE = [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]


@pytest.fixture(params=PRECISIONS)
def value_and_gradients(request):
    """Compute a term on a step whose voxels, in both cases and views, have one feature each; classes 1, 1, 2, 2."""
    dtype, autocast = PRECISIONS[request.param]

    def compute(make_term, voxels, stored):
        memory = PrototypeMemory(3, 2, 4)
        memory.update({c: torch.tensor(rows) for c, rows in stored.items()})
        maps = torch.tensor(voxels, dtype=dtype).T.reshape(1, 2, 1, 1, 4)
        features, weak = maps.repeat(2, 1, 1, 1, 1).requires_grad_(), maps.clone().requires_grad_()
        logits = torch.full((2, 3, 1, 1, 4), -20.0)
        for voxel, c in enumerate([1, 1, 2, 2]):
            logits[:, c, ..., voxel] = 20.0
        step = make_batch(
            logits,
            features,
            torch.tensor([1, 1, 2, 2]).reshape(1, 1, 1, 4),
            weak_images=torch.zeros(1, 1, 1, 1, 4),
            forward_pass=lambda images, keep_statistics=True, fixed_parameters=False: (logits[1:], weak),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            value = make_term(memory.to(dtype))(step)
        value.backward()
        gradients = [tensor.grad for tensor in (features, weak) if tensor.grad is not None]
        assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
        return value.item(), gradients

    return compute


def contrast(of):
    return lambda memory: of(ContrastivePrototypeLoss(memory))


CONTRASTS = pytest.mark.parametrize("term", [LabelledContrastTerm, UnlabelledContrastTerm])
FORMS = pytest.mark.parametrize("form", ["aligned", "reference"])
POOL = {1: [EAST, EAST], 2: [EAST, EAST]}


@CONTRASTS
@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ([EAST] * 4, 0.0),
        ([WEST] * 4, 2.0),
        ([NOWHERE] * 4, 1.0),
        ([[1e18, 0.0]] * 4, 0.0),
        ([[-1e-18, 0.0]] * 4, 1.0),  # shorter than the normalisation's floor of 1e-12: nearly no direction
    ],
)
def test_contrast(term, voxels, expected, value_and_gradients):
    value, _ = value_and_gradients(contrast(term), voxels, POOL)
    assert value == pytest.approx(expected, abs=1e-2)


@CONTRASTS
@pytest.mark.parametrize(("stored", "expected"), [({2: [EAST, EAST]}, 2.0), ({1: [EAST]}, 0.0), ({}, 0.0)])
def test_contrast_where_a_class_has_no_memory(term, stored, expected, value_and_gradients):
    value, gradients = value_and_gradients(contrast(term), [WEST, NOWHERE, WEST, WEST], stored)
    assert value == pytest.approx(expected, abs=1e-2)
    assert expected or all(gradient.eq(0).all() for gradient in gradients)


@FORMS
@pytest.mark.parametrize("voxels", [[EAST] * 4, [WEST] * 4, [NOWHERE] * 4, [EAST, WEST, EAST, WEST], [[1e4, 0.0]] * 4])
def test_correlation_with_a_pool_of_the_same_spread_is_at_rest(form, voxels, value_and_gradients):
    stored = {1: [voxels[0], voxels[1]], 2: [voxels[2], voxels[3]]}
    value, gradients = value_and_gradients(lambda pool: CorrelationTerm(pool, form=form), voxels, stored)
    assert value == pytest.approx(0.0, abs=1e-6)
    if form == "aligned":  # the published form has a gradient wherever a covariance is not zero
        assert all(gradient.eq(0).all() for gradient in gradients)


@FORMS
def test_correlation_of_features_without_spread(form, value_and_gradients):
    """Both pools have variance 2 along one axis: all distances are 4 / 16; log softmax of four alike is -log 4."""
    stored = {1: [EAST, WEST], 2: [WEST, EAST]}
    value, _ = value_and_gradients(lambda pool: CorrelationTerm(pool, form=form), [EAST] * 4, stored)
    assert value == pytest.approx({"aligned": 0.25, "reference": 0.25 * 1.3863}[form], rel=1e-2)


@FORMS
@pytest.mark.parametrize("stored", [{}, {0: [EAST, WEST]}, {1: [EAST]}])
def test_correlation_without_a_pair(form, stored, value_and_gradients):
    value, gradients = value_and_gradients(
        lambda pool: CorrelationTerm(pool, form=form), [EAST, WEST, EAST, WEST], stored
    )
    assert value == 0 and all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("term", "voxels", "expected"),
    [
        (CompactnessTerm, [EAST] * 4, 0.0),
        (CompactnessTerm, [EAST, WEST, EAST, WEST], 1.0),
        (CompactnessTerm, [NOWHERE] * 4, 1.0),
        (SeparationTerm, [EAST] * 4, 1.0),
        (SeparationTerm, [EAST, EAST, WEST, WEST], 0.0),
        (SeparationTerm, [EAST, WEST, EAST, WEST], 0.0),  # both means vanish: no direction, distance 1
    ],
)
def test_clusters(term, voxels, expected, value_and_gradients):
    value, _ = value_and_gradients(lambda _: term(unlabelled=True), voxels, {})
    assert value == pytest.approx(expected, abs=1e-2)
