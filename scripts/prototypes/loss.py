# SPDX-License-Identifier: Apache-2.0
"""Distances between features and class prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize, softplus

from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import NO_CLASS, check_embeddings, sample_per_class, voxel_embeddings

MIN_EMBEDDINGS = 2
"""Fewest features and fewest prototypes with which a class contributes, as in the published codes."""


def cosine_similarity(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair, `(N, D)` and `(M, D)` to `(N, M)`; 0 for a zero vector, which has no direction."""
    return normalize(features, dim=1) @ normalize(prototypes, dim=1).T


def cosine_distance(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """`1 - cosine similarity` of every pair: embeddings `(N, D)` and `(M, D)` to `(N, M)`, values in [0, 2].

    A zero row has no direction; its distance to everything is 1.
    """
    return 1.0 - cosine_similarity(features, prototypes)


def class_contrast(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    feature_weights: torch.Tensor | None = None,
    memory_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean weighted cosine distance of one class's features to its memory.

    `mean_{n,m} w_n v_m (1 - cos(f_n, p_m))`, the class loss of the method document and of SS-Net (Wu et al., MICCAI
    2022).

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: `(M, D)`, M at least 1; constants.
        feature_weights: w `(N,)` with mean 1, or `None` for ones.
        memory_weights: v `(M,)` with mean 1, or `None` for ones.
    """
    distances = cosine_distance(features, prototypes)
    if feature_weights is not None:
        distances = distances * feature_weights[:, None]
    if memory_weights is not None:
        distances = distances * memory_weights[None]
    return distances.mean()


def class_info_nce(
    features: torch.Tensor, prototypes: torch.Tensor, others: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding one class's memory among all classes' with features of that class.

    `mean_n [log sum_{all m} exp(cos(f_n, p_m) / t) - log sum_{own m} exp(cos(f_n, p_m) / t)]`: the supervised contrast
    of Khosla et al. (NeurIPS 2020, eq. 3, its sum inside the logarithm), against prototypes. At least 0, and finite
    for a small t too, as both sums stay logarithms.

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: of the class, `(M, D)`, M at least 1; constants.
        others: of all other classes, `(L, D)`, L at least 1; constants.
        temperature: t, above 0.
    """
    own, rest = (
        (cosine_similarity(features, embeddings).float() / temperature).logsumexp(dim=1)
        for embeddings in (prototypes, others)
    )
    return softplus(rest - own).mean()


def average_over_classes(losses: Sequence[torch.Tensor], num_classes: int, divisor: str) -> torch.Tensor:
    """Average class losses over the classes that contributed, or over all of them.

    Args:
        losses: one scalar per class that contributed, at least one.
        num_classes: K.
        divisor: `present` divides by `len(losses)`; `all` by K, so that skipped classes count as 0 (published codes).
    """
    return torch.stack(list(losses)).sum() / (len(losses) if divisor == "present" else num_classes)


class ContrastivePrototypeLoss(nn.Module):
    """Mean over classes of the mean cosine distance between a class's features and its memory.

    For each class c with prototypes p: `L_c = mean_{n,m} (1 - cos(q(g(f_n)), p_m))` over the features f of the class,
    with projection head g and prediction head q; the memory holds projections g(f). Values lie in [0, 2]. This is the
    class-to-class contrast of SS-Net (Wu et al., MICCAI 2022) and SemiSeg-Contrastive (Alonso et al., ICCV 2021). With
    selectors each distance is multiplied by the weights of its feature and of its memory row; values are then not
    bounded by 2.

    Gradients reach the features, both heads and the selectors, never the memory. A call changes nothing but the running
    statistics of batch norms in heads and selectors in training mode and, where it samples, torch's generator; writing
    the memory is the task of `MemoryBankUpdater`.

    Nothing is hidden: where a feature that enters holds a NaN, so does the value, and `GradientGuard` undoes the step.

    Args:
        memory: prototypes per class, width D.
        projection_head: g, embeddings `(N, C)` to `(N, D)`; `None` where features come projected (then C = D).
        prediction_head: q, embeddings `(N, D)` to `(N, D)`, or `None`.
        selectors: learned weights, fed q(g(f)) and p; `None` weighs all alike.
        samples_per_class: most voxels of a class that enter a call, drawn at random; `None` for all. Neighbouring
            voxels say nearly the same, and the heads' cost grows with every row.
        divisor: `present` averages over the classes that contributed, `all` divides by K as the published codes do.
        temperature: `None` for the distance above, which pulls only. A number above 0 puts the cross-entropy of finding
            the own class's memory among all classes' in its place (`scripts.prototypes.loss.class_info_nce`), which
            also pushes; values are then at least 0 without a bound, and a class contributes only where another one has
            memory. Not with selectors, which weigh distances.
        embeddings_through_heads: `used`: only the voxels whose distances count; `all`: every voxel, as in the published
            codes, so that the heads' batch norms see all classes and voxels that are not sampled. It costs accordingly.

    Raises:
        ValueError: for a wrong argument here; in `forward` for features and labels that do not belong together.
    """

    def __init__(
        self,
        memory: PrototypeMemory,
        projection_head: nn.Module | None = None,
        prediction_head: nn.Module | None = None,
        selectors: ClassSelectors | None = None,
        samples_per_class: int | None = 256,
        divisor: str = "present",
        embeddings_through_heads: str = "used",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if samples_per_class is not None and samples_per_class < MIN_EMBEDDINGS:
            raise ValueError(f"samples_per_class must be at least {MIN_EMBEDDINGS}, got {samples_per_class}.")
        if divisor not in ("present", "all"):
            raise ValueError(f"divisor must be 'present' or 'all', got {divisor!r}.")
        if embeddings_through_heads not in ("used", "all"):
            raise ValueError(f"embeddings_through_heads must be 'used' or 'all', got {embeddings_through_heads!r}.")
        if temperature is not None and (not temperature > 0.0 or selectors is not None):
            raise ValueError(f"temperature must be above 0 and stand without selectors, got {temperature!r}.")
        self.temperature = temperature
        self.memory = memory
        self.projection_head = projection_head if projection_head is not None else nn.Identity()
        self.prediction_head = prediction_head if prediction_head is not None else nn.Identity()
        self.selectors = selectors
        self.samples_per_class = samples_per_class
        self.divisor = divisor
        self.embeddings_through_heads = embeddings_through_heads

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            features: maps `(B, C, D, H, W)` or embeddings `(N, C)`, before the heads; cast to the memory's type.
            labels: classes `(B, D, H, W)` or `(N,)` on the features' grid, int64 in [0, K), or `NO_CLASS` for voxels
                that take no part.

        Returns:
            A scalar. Where no class has enough features and memory it is 0 and its gradient to the features is 0.
        """
        # Plain tensors: picking embeddings of a MetaTensor batch fails on its metadata.
        features, flat = features.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor).reshape(-1)
        embeddings = voxel_embeddings(features).to(self.memory.features.dtype)
        check_embeddings(embeddings, flat, self.memory.num_classes)
        chosen = self._usable(flat)
        if self.embeddings_through_heads == "all":
            predictions = self._through_heads(embeddings)
        if len(chosen) < MIN_EMBEDDINGS:
            return embeddings[:0].sum()  # 0 with a zero gradient, whatever the features hold
        flat = flat[chosen]
        predictions = (
            predictions[chosen] if self.embeddings_through_heads == "all" else self._through_heads(embeddings[chosen])
        )
        losses = [self._class_loss(c, predictions[flat == c]) for c in flat.unique().tolist()]
        return average_over_classes(losses, self.memory.num_classes, self.divisor)

    def _through_heads(self, embeddings: torch.Tensor) -> torch.Tensor:
        predictions = self.prediction_head(self.projection_head(embeddings))
        if predictions.shape[1] != self.memory.feature_dim:
            raise ValueError(
                f"ContrastivePrototypeLoss: behind the heads a feature has width {predictions.shape[1]}, a row of the "
                f"memory {self.memory.feature_dim}; give them one width."
            )
        return predictions

    def _class_loss(self, class_id: int, predictions: torch.Tensor) -> torch.Tensor:
        prototypes = self.memory.prototypes(class_id)
        if self.temperature is not None:
            others = torch.cat([self.memory.prototypes(c) for c in range(self.memory.num_classes) if c != class_id])
            return class_info_nce(predictions, prototypes, others, self.temperature)
        if self.selectors is None:
            return class_contrast(predictions, prototypes)
        return class_contrast(
            predictions,
            prototypes,
            self.selectors.feature_weights(class_id, predictions),
            self.selectors.memory_weights(class_id, prototypes),
        )

    def missing_pairs(self, labels: torch.Tensor) -> str | None:
        """Why no class contributes to a call with these labels, or `None` if one does."""
        available, usable = self._usable_classes(labels.as_subclass(torch.Tensor).reshape(-1))
        if bool(usable.any()):
            return None
        stored = self.memory.summary()
        counts = ", ".join(f"{n} and {stored[c]} in class {c}" for c, n in enumerate(available.tolist()))
        alone = "" if self.temperature is None else ", beside another class with prototypes"
        least = f"{MIN_EMBEDDINGS} features and {MIN_EMBEDDINGS} prototypes"
        return f"no class has {least}{alone}; there are {counts}"

    def _usable_classes(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of each class `(K,)`, and whether it has enough of them and enough memory."""
        available = torch.bincount(flat[flat >= 0], minlength=self.memory.num_classes)
        stored = self.memory.counts.to(flat.device)
        usable = (available >= MIN_EMBEDDINGS) & (stored >= MIN_EMBEDDINGS)
        if self.temperature is not None:
            usable &= (stored > 0).sum() > 1  # alone in memory, a class is found with certainty
        return available, usable

    def _usable(self, flat: torch.Tensor) -> torch.Tensor:
        """Sampled voxels of the classes that can contribute."""
        _, usable = self._usable_classes(flat)
        kept = torch.where(usable[flat.clamp(min=0)], flat, torch.full_like(flat, NO_CLASS))
        return sample_per_class(kept, self.memory.num_classes, self.samples_per_class)
