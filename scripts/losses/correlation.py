# SPDX-License-Identifier: Apache-2.0
"""Unlabelled features against a pool of reliable ones, by their covariance."""

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
    """Covariance `(D, D)` of embeddings `(N, D)`, N at least 2, with the divisor N - 1; float32 or wider."""
    width = embeddings.shape[1]
    # torch.cov makes a scalar of a 1 by 1 matrix.
    return torch.cov(embeddings.T.to(torch.promote_types(embeddings.dtype, torch.float32))).reshape(width, width)


def correlation_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`|| A - B ||_F^2 / (4 d^2)` of two covariances `(d, d)`: the CORAL loss (Sun & Saenko, ECCV 2016 workshops)."""
    return (first - second).square().sum() / (4 * len(first) ** 2)


def pool_distances(covariances: Sequence[torch.Tensor], pool: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distance of each of P covariances `(d, d)` to each of Q others, flat `(P * Q,)`, row by row."""
    return torch.stack([correlation_distance(first, second) for first in covariances for second in pool])


def cross_view_entropy(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`-1/n sum_i s_i log softmax(f)_i` of two views' distances f and s, both `(n,)`: CORN's published code.

    s is no distribution and carries a gradient, so this is smallest where the second view's distances to the
    covariances of all classes vanish, and hardly moves the first view while distances are small. With n = 1 it is 0.
    """
    return cross_entropy(first, second) / len(first)


FORMS = ("aligned", "reference")


class CorrelationTerm(LossTerm):
    """Correlation alignment with a dynamic feature pool: CORN (Li et al., BIBM 2024, arXiv 2410.15916).

    From the paper's abstract: second-order statistics bring labelled and unlabelled features together, a pool filtered
    by confidence keeps wrong features out of it, and two models are held to the same similarities. From its code: the
    pool holds projections of labelled voxels that both models name correctly; unlabelled voxels count where both models
    name the same class; a class's covariance is compared with the pool's by `|| A - B ||_F^2 / (4 d^2)`.

    Here the two views are one network's: the unlabelled cases of the step, and a further pass on them before intensity
    augmentation; in the code they are two decoders with heads of their own. The pool is a `PrototypeMemory` (`fifo`
    keeps the newest) that `MemoryBankUpdater` writes and this term reads; the code keeps all voxels of the labelled
    cases. Voxels are drawn at random among the agreeing and confident ones; the code takes the most and the least
    confident agreeing ones.

    Forms, with covariances A_c and B_c of the two views and P_c of the pool:
        `aligned`: ours, after the abstract: `mean_c [ (d(A_c, P_c) + d(B_c, P_c)) / 2 + d(A_c, B_c) ]`, 0 where all
            three are the same.
        `reference`: the code: the distances of every class to every class's pool, of both views, in
            `scripts.losses.correlation.cross_view_entropy`. It draws a class to the pools of other classes too.

    Args:
        pool: embeddings by class, of the width that the projection head gives.
        projection_head: g, embeddings `(N, C)` to `(N, D)`, shared with the handler that fills the pool; `None` for
            plain embeddings.
        prediction_head: q, embeddings `(N, D)` to `(N, D)`, on top of g, or `None`. The pool holds g(f) as in the code.
        weight: number or schedule.
        confidence: least probability in [0, 1] that both views must give to their class; 0 asks for agreement alone,
            as the code does.
        samples_per_class: most unlabelled voxels of a class, drawn at random, at least 2; `None` for all.
        form: see above.

    Raises:
        ValueError: for an unknown form or `samples_per_class` below 2.
        UserError: in `compute`, if the step has unlabelled cases but not their images before intensity augmentation.
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
                "CorrelationTerm needs unlabelled images before intensity augmentation: keep `train::weak_view` in the "
                "configuration."
            )
        weak_logits, weak_features = batch.forward_pass(batch.weak_images)
        classes = self._agreeing(batch.unlabelled_logits, weak_logits)
        flat = labels_on_grid(classes, features.shape[2:]).reshape(-1)
        chosen, present = self._usable(flat, stored)
        if not present:
            return features[:0].sum()
        flat = flat[chosen]
        # One call of the heads for both views: their batch norms see twice the embeddings.
        views = torch.stack([voxel_embeddings(features)[chosen], voxel_embeddings(weak_features)[chosen]])
        views = self.prediction_head(self.projection_head(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        first, second = ([covariance(view[flat == c]) for c in present] for view in views)
        return self._distance(first, second, present, stored)

    def _agreeing(self, logits: torch.Tensor, weak_logits: torch.Tensor) -> torch.Tensor:
        """Classes `(U, D, H, W)` that both views name with confidence, `NO_CLASS` elsewhere."""
        first, _ = pseudo_labels(logits.detach(), self.confidence)
        second, _ = pseudo_labels(weak_logits.detach(), self.confidence)
        return first.masked_fill(first != second, NO_CLASS)

    def _usable(self, flat: torch.Tensor, stored: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Sampled voxels of the classes that have two or more of them and embeddings in the pool, and these classes."""
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
