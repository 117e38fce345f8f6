# SPDX-License-Identifier: Apache-2.0
"""Alignment of the covariance of unlabelled features with the covariance of a pool of reliable features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scripts.errors import UserError
from scripts.losses.base import LossTerm, TrainingBatch
from scripts.losses.schedules import Schedule
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.voxels import NO_CLASS, labels_on_grid, pseudo_labels, sample_per_class, voxel_embeddings


def covariance(embeddings: torch.Tensor) -> torch.Tensor:
    """Covariance `(D, D)` of embeddings `(N, D)`, N at least 2, with divisor N - 1; float32 or wider."""
    width = embeddings.shape[1]
    # torch.cov returns a scalar for a 1 by 1 matrix.
    return torch.cov(embeddings.T.to(torch.promote_types(embeddings.dtype, torch.float32))).reshape(width, width)


def correlation_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`|| A - B ||_F^2 / (4 d^2)` of two covariances `(d, d)`: the CORAL loss (Sun & Saenko, ECCV 2016 workshops)."""
    return (first - second).square().sum() / (4 * len(first) ** 2)


def pool_distances(covariances: Sequence[torch.Tensor], pool: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distances of P covariances `(d, d)` to Q others, flattened row by row to `(P * Q,)`."""
    return torch.stack([correlation_distance(first, second) for first in covariances for second in pool])


def cross_view_entropy(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`-1/n sum_i s_i log softmax(f)_i` for the distances f and s of two views, both `(n,)`, as in CORN's code.

    s is not a distribution, and it receives a gradient. The value is therefore smallest if the second view has distance
    0 to the covariances of all classes, and while distances are small it hardly affects the first view. With n = 1 it
    is 0.
    """
    return cross_entropy(first, second) / len(first)


FORMS = ("aligned", "reference")


class CorrelationTerm(LossTerm):
    """Correlation alignment with a dynamic feature pool: CORN (Li et al., BIBM 2024, arXiv 2410.15916).

    The paper aligns second-order statistics of labelled and unlabelled features, keeps features of low confidence out
    of a pool, and requires two models to agree on the similarities. In the published code the pool holds projections of
    labelled voxels that both models predict correctly. Unlabelled voxels are used if both models predict the same
    class. The covariance of a class is compared with that of the pool by d(A, B) = `|| A - B ||_F^2 / (4 d^2)`.

    Differences from the published code:

    - The code uses two decoders with separate heads as its two views. Here the views are two passes of one network, on
      the unlabelled images of the step and on the same images before intensity augmentation.
    - The code's pool holds all voxels of the labelled cases. Here it is a `PrototypeMemory` that `MemoryBankUpdater`
      writes (`fifo` keeps the newest).
    - The code uses the most and the least confident voxels on which the views agree. Here voxels are drawn at random
      from those on which the views agree with enough confidence.

    Forms, with covariances A_c and B_c of the two views and P_c of the pool:
        `aligned`: our formula for the paper's abstract, `mean_c [ (d(A_c, P_c) + d(B_c, P_c)) / 2 + d(A_c, B_c) ]`; 0
            if all three are equal.
        `reference`: as in the code, `cross_view_entropy` of both views' distances from each class to the pool of each
            class. It also pulls a class towards the pools of other classes.

    Args:
        pool: memory with the projected embeddings of each class.
        projection_head: g, embeddings `(N, C)` to `(N, D)`, shared with the handler that fills the pool; `None` uses
            the features themselves.
        prediction_head: q, embeddings `(N, D)` to `(N, D)`, applied after g, or `None`. The pool holds g(f), as in the
            code.
        weight: number or schedule.
        confidence: minimum probability in [0, 1] of the predicted class in both views; 0 only requires that the views
            agree, as in the code.
        samples_per_class: maximum number of unlabelled voxels of a class, drawn at random, at least 2; `None` for all.
        form: `aligned` or `reference`.

    Raises:
        ValueError: for an unknown form, or `samples_per_class` below 2.
        UserError: in `forward`, if the batch has unlabelled cases but not their images before intensity augmentation.
    """

    def __init__(
        self,
        pool: PrototypeMemory,
        projection_head: nn.Module | None = None,
        prediction_head: nn.Module | None = None,
        weight: float | Schedule = 1.0,
        confidence: float = 0.9,
        samples_per_class: int | None = 256,
        form: str = "aligned",
    ) -> None:
        super().__init__(weight)
        if form not in FORMS:
            raise ValueError(f"CorrelationTerm: form must be one of {', '.join(FORMS)}, got {form!r}.")
        if samples_per_class is not None and samples_per_class < 2:
            raise ValueError(f"CorrelationTerm: samples_per_class must be at least 2, got {samples_per_class}.")
        self.pool = pool
        self.projection_head = projection_head if projection_head is not None else nn.Identity()
        self.prediction_head = prediction_head if prediction_head is not None else nn.Identity()
        self.confidence = confidence
        self.samples_per_class = samples_per_class
        self.form = form

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        features = batch.unlabelled_features
        stored = [c for c, count in self.pool.summary().items() if count >= 2]
        if batch.num_unlabelled == 0 or not stored:
            return features[:0].sum()
        if batch.weak_images is None:
            raise UserError(
                "CorrelationTerm needs the unlabelled images before intensity augmentation: keep the transform that "
                "copies `image` to `weak` at the end of train::spatial_transforms."
            )
        weak_logits, weak_features = batch.forward_pass(batch.weak_images)
        classes = self._agreeing(batch.unlabelled_logits, weak_logits)
        flat = labels_on_grid(classes, features.shape[2:]).reshape(-1)
        chosen, present = self._usable(flat, stored)
        if not present:
            return features[:0].sum()
        flat = flat[chosen]
        # One call of the heads for both views, so that the batch norms see all embeddings together.
        views = torch.stack([voxel_embeddings(features)[chosen], voxel_embeddings(weak_features)[chosen]])
        views = self.prediction_head(self.projection_head(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        first, second = ([covariance(view[flat == c]) for c in present] for view in views)
        return self._distance(first, second, present, stored)

    def _agreeing(self, logits: torch.Tensor, weak_logits: torch.Tensor) -> torch.Tensor:
        """Return the classes `(U, D, H, W)` that both views predict confidently, and `NO_CLASS` elsewhere."""
        first, _ = pseudo_labels(logits.detach(), self.confidence)
        second, _ = pseudo_labels(weak_logits.detach(), self.confidence)
        return first.masked_fill(first != second, NO_CLASS)

    def _usable(self, flat: torch.Tensor, stored: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Sample voxels of the classes that have two or more voxels and are in the pool; return indices and classes."""
        num_classes = self.pool.num_classes
        available = torch.bincount(flat[flat >= 0], minlength=num_classes).tolist()
        present = [c for c in stored if available[c] >= 2]
        usable = torch.zeros(num_classes, dtype=torch.bool, device=flat.device)
        usable[present] = True
        kept = flat.masked_fill(~usable[flat.clamp(min=0)], NO_CLASS)
        return sample_per_class(kept, num_classes, self.samples_per_class), present

    def _distance(
        self, first: list[torch.Tensor], second: list[torch.Tensor], present: list[int], stored: list[int]
    ) -> torch.Tensor:
        pool = {c: covariance(self.pool.prototypes(c)) for c in stored}
        if self.form == "reference":
            everything = list(pool.values())
            return cross_view_entropy(pool_distances(first, everything), pool_distances(second, everything))
        terms = [
            (correlation_distance(a, pool[c]) + correlation_distance(b, pool[c])) / 2 + correlation_distance(a, b)
            for c, a, b in zip(present, first, second, strict=True)
        ]
        return torch.stack(terms).mean()
