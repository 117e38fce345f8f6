# SPDX-License-Identifier: Apache-2.0
"""Losses on features: contrast with class prototypes, compactness within a class, separation of the class means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize, one_hot, relu, softplus

from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import check_counts, check_embeddings, group_by_class, sample_group, voxel_embeddings

MIN_EMBEDDINGS = 2
"""A class contributes if it has at least this many features and this many prototypes, as in the published code."""

SMALLEST_NORM = 1e-12
"""Embeddings shorter than this count as zero, without a direction; the limit of `torch.nn.functional.normalize`."""


def cosine_similarity(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair, `(N, D)` and `(M, D)` to `(N, M)`; 0 for a zero vector, which has no direction."""
    return normalize(features, dim=1) @ normalize(prototypes, dim=1).T


def cosine_distance(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """`1 - cosine similarity` of every pair, `(N, D)` and `(M, D)` to `(N, M)`, in [0, 2]; 1 for a zero vector."""
    return 1.0 - cosine_similarity(features, prototypes)


def class_contrast(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    feature_weights: torch.Tensor | None = None,
    memory_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean weighted cosine distance between one class's features and its prototypes.

    `mean_{n,m} w_n v_m (1 - cos(f_n, p_m))`, the class loss of the method document and of SS-Net (Wu et al., MICCAI
    2022).

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: `(M, D)`, M at least 1; constants.
        feature_weights: w `(N,)` with mean 1, or `None` for ones.
        memory_weights: v `(M,)` with mean 1, or `None` for ones.
    """
    # This form needs one dot product per feature instead of one per pair, and divides (N,) values instead of (N, D):
    # mean_m v_m (1 - cos(f, p_m)) = mean(v) - f . t / |f| with t = mean_m v_m p_m / |p_m|.
    if memory_weights is None:
        memory_weights = prototypes.new_ones(len(prototypes))
    target = memory_weights @ normalize(prototypes, dim=1) / len(prototypes)
    norms = torch.linalg.vector_norm(features, dim=1).clamp_min(SMALLEST_NORM)
    distances = memory_weights.mean() - features @ target / norms
    return (distances if feature_weights is None else distances * feature_weights).mean()


def class_info_nce(
    features: torch.Tensor, prototypes: torch.Tensor, others: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of picking a class's prototypes among those of all classes, given features of the class.

    `mean_n [log sum_{all m} exp(cos(f_n, p_m) / t) - log sum_{own m} exp(cos(f_n, p_m) / t)]`: the supervised
    contrastive loss of Khosla et al. (NeurIPS 2020, eq. 3, with the sum inside the logarithm), with prototypes in place
    of other samples. The value is at least 0. It is finite even for a small t, because both sums are computed in the
    log domain.

    Args:
        features: `(N, D)`, N at least 1.
        prototypes: prototypes of the class, `(M, D)`, M at least 1; constants.
        others: prototypes of all other classes, `(L, D)`, L at least 1; constants.
        temperature: t, above 0.
    """
    own, rest = (
        (cosine_similarity(features, embeddings).float() / temperature).logsumexp(dim=1)
        for embeddings in (prototypes, others)
    )
    return softplus(rest - own).mean()


def average_over_classes(losses: Sequence[torch.Tensor], num_classes: int, divisor: str) -> torch.Tensor:
    """Average class losses over the classes that contributed, or over all classes.

    Args:
        losses: one scalar per class that contributed, at least one.
        num_classes: K.
        divisor: `present` divides by `len(losses)`; `all` divides by K, so that skipped classes count as 0, as
            in the published code.
    """
    return torch.stack(list(losses)).sum() / (len(losses) if divisor == "present" else num_classes)


class ContrastivePrototypeLoss(nn.Module):
    """Mean cosine distance between each class's features and its prototypes, averaged over classes.

    For each class c with prototypes p: `L_c = mean_{n,m} (1 - cos(q(g(f_n)), p_m))` over the features f of the class,
    with projection head g and prediction head q; the memory holds projections g(f). Values lie in [0, 2]. This is the
    class-to-class contrast of SS-Net (Wu et al., MICCAI 2022) and SemiSeg-Contrastive (Alonso et al., ICCV 2021). With
    selectors, each distance is multiplied by the weights of its feature and its prototype, so values can exceed 2.

    Gradients reach the features, both heads and the selectors. They do not reach the memory, which `MemoryBankUpdater`
    writes. In training mode a call updates the running statistics of batch norms in heads and selectors, and sampling
    advances torch's generator; nothing else changes. A NaN in a feature that is used makes the value NaN;
    `GradientGuard` then undoes the step.

    Args:
        memory: prototypes of each class, of width D.
        projection_head: g, embeddings `(N, C)` to `(N, D)`; `None` for features that are projected already (C = D).
        prediction_head: q, embeddings `(N, D)` to `(N, D)`, or `None`.
        selectors: learned weights, computed from q(g(f)) and p; `None` for equal weights.
        samples_per_class: maximum number of voxels of a class per call, drawn at random, at least 2; `None` for all.
            Neighbouring voxels carry nearly the same information, and the heads' cost grows with the number of voxels.
        divisor: `present` averages over the classes that contributed; `all` divides by K, as the published code does.
        temperature: `None` for the distance above, which only pulls features towards their class. A number above 0
            selects `class_info_nce` instead, which also pushes them away from other classes. Its values are at least 0
            without an upper bound, and a class contributes only if another class has prototypes. It cannot be combined
            with selectors.
        embeddings_through_heads: `used` sends only the sampled voxels through the heads; `all` sends every voxel, as in
            the published code, so that the heads' batch norms see all classes and all voxels. `all` costs more.

    Attributes:
        contributing: the classes that contributed in the last call.

    Raises:
        ValueError: at construction for an invalid argument; in `forward` if features and labels do not match.

    Example:
        >>> memory = PrototypeMemory(num_classes=2, feature_dim=2)
        >>> memory.update({1: torch.tensor([[1.0, 0.0], [2.0, 0.0]])})
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)  # orthogonal and parallel
        >>> ContrastivePrototypeLoss(memory)(features, torch.tensor([1, 1])).item()
        0.5
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
            raise ValueError(f"temperature must be above 0 and needs selectors=None, got {temperature!r}.")
        self.temperature = temperature
        self.memory = memory
        self.projection_head = projection_head if projection_head is not None else nn.Identity()
        self.prediction_head = prediction_head if prediction_head is not None else nn.Identity()
        self.selectors = selectors
        self.samples_per_class = samples_per_class
        self.divisor = divisor
        self.embeddings_through_heads = embeddings_through_heads
        self.contributing: list[int] = []

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            features: maps `(B, C, D, H, W)` or embeddings `(N, C)`, before the heads; cast to the memory's type.
            labels: classes `(B, D, H, W)` or `(N,)` on the features' grid, int64 in [0, K), or `NO_CLASS` for voxels
                to ignore.

        Returns:
            A scalar; 0 with a zero gradient if no class has enough features and prototypes.
        """
        # Plain tensors: indexing a MetaTensor batch fails on its metadata.
        features, flat = features.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor).reshape(-1)
        dtype = self.memory.features.dtype
        check_counts(len(features) * features.shape[2:].numel(), flat)
        groups = group_by_class(flat, self.memory.num_classes)
        stored = self.memory.counts.tolist()
        self.contributing = self._usable([len(group) for group in groups], stored)
        if self.embeddings_through_heads == "all":
            predictions = self._through_heads(voxel_embeddings(features).to(dtype))
        if not self.contributing:
            return features[:0].sum().to(dtype)  # 0 with a zero gradient, even if the features hold a NaN
        members = [sample_group(groups[c], self.samples_per_class) for c in self.contributing]
        chosen = torch.cat(members)
        if self.embeddings_through_heads == "all":
            predictions = predictions.index_select(0, chosen)
        else:
            predictions = self._through_heads(voxel_embeddings(features, chosen).to(dtype))
        prototypes = [own[:count] for own, count in zip(self.memory.features, stored, strict=True)]
        by_class = predictions.split([len(group) for group in members])
        losses = [self._class_loss(c, own, prototypes) for c, own in zip(self.contributing, by_class, strict=True)]
        return average_over_classes(losses, self.memory.num_classes, self.divisor)

    def _through_heads(self, embeddings: torch.Tensor) -> torch.Tensor:
        predictions = self.prediction_head(self.projection_head(embeddings))
        if predictions.shape[1] != self.memory.feature_dim:
            raise ValueError(
                f"ContrastivePrototypeLoss: the heads give features of width {predictions.shape[1]}, but the memory's "
                f"prototypes have width {self.memory.feature_dim}; make them equal."
            )
        return predictions

    def _class_loss(self, class_id: int, predictions: torch.Tensor, prototypes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Loss of the predictions of a class, given the prototypes of all classes."""
        own = prototypes[class_id]
        if self.temperature is not None:
            others = torch.cat([*prototypes[:class_id], *prototypes[class_id + 1 :]])
            return class_info_nce(predictions, own, others, self.temperature)
        if self.selectors is None:
            return class_contrast(predictions, own)
        return class_contrast(
            predictions,
            own,
            self.selectors.feature_weights(class_id, predictions),
            self.selectors.memory_weights(class_id, own),
        )

    def missing_pairs(self, labels: torch.Tensor) -> str | None:
        """Explain why no class contributes to a call with these labels; `None` if one does."""
        groups = group_by_class(labels.as_subclass(torch.Tensor).reshape(-1), self.memory.num_classes)
        available, stored = [len(group) for group in groups], self.memory.counts.tolist()
        if self._usable(available, stored):
            return None
        counts = ", ".join(f"{n} and {stored[c]} in class {c}" for c, n in enumerate(available))
        alone = "" if self.temperature is None else " while another class has prototypes"
        least = f"{MIN_EMBEDDINGS} features and {MIN_EMBEDDINGS} prototypes"
        return f"no class has {least}{alone} (features and prototypes: {counts})"

    def _usable(self, available: Sequence[int], stored: Sequence[int]) -> list[int]:
        """Classes that have enough features and prototypes, given the numbers of both for each class."""
        if self.temperature is not None and sum(count > 0 for count in stored) < 2:
            return []  # with a single class there is nothing to tell it from
        return [c for c, counts in enumerate(zip(available, stored, strict=True)) if min(counts) >= MIN_EMBEDDINGS]


def compactness(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean cosine distance of embeddings to the mean direction of their class, averaged over classes.

    For unit embeddings u of class c with mean m_c, this is `mean_n (1 - u_n . m_c / |m_c|) = 1 - |m_c|`, the circular
    variance (Mardia & Jupp, Directional Statistics, 2000). It is 0 if all embeddings have the same direction, and 1 if
    the directions cancel out. The gradient also flows through the mean, and pulls the embeddings together.

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings to leave out.
        num_classes: K.

    Returns:
        A scalar in [0, 1]; 0 with a zero gradient if no class has two embeddings.

    Raises:
        ValueError: for a label out of range, or unequal numbers of labels and embeddings.
    """
    means = _mean_directions(features, labels, num_classes, min_embeddings=2)
    if len(means) == 0:
        return features[:0].sum()
    return (1.0 - torch.linalg.vector_norm(means, dim=1)).mean()


def check_margin(margin: float) -> None:
    """Raise `ValueError` unless `margin` is a cosine distance in (0, 2]."""
    if not 0.0 < margin <= 2.0:
        raise ValueError(f"margin must be a cosine distance in (0, 2], got {margin}.")


def separation(features: torch.Tensor, labels: torch.Tensor, num_classes: int, margin: float = 1.0) -> torch.Tensor:
    """Hinge loss on the cosine distance between the means of two classes, averaged over pairs of classes.

    `mean_{c<d} max(0, margin - (1 - cos(m_c, m_d)))`, where m is the mean of a class's unit embeddings. The gradient
    pushes the embeddings of two classes apart until the distance of their means reaches `margin`. A distance of 1 means
    orthogonal, and 2 means opposite; more than two classes cannot all be opposite to each other.

    Args:
        features: embeddings `(N, D)`, of any length.
        labels: `(N,)`, int64 in [0, K), or `NO_CLASS` for embeddings to leave out.
        num_classes: K.
        margin: cosine distance in (0, 2].

    Returns:
        A scalar in [0, margin]; 0 with a zero gradient if fewer than two classes have embeddings.

    Raises:
        ValueError: for a margin outside (0, 2], a label out of range, or unequal numbers of labels and embeddings.
    """
    check_margin(margin)
    means = _mean_directions(features, labels, num_classes, min_embeddings=1)
    if len(means) < 2:
        return features[:0].sum()
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    return relu(margin - cosine_distance(means, means)[first, second]).mean()


def _mean_directions(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, min_embeddings: int
) -> torch.Tensor:
    """Return the means `(P, D)` of the unit embeddings of each class that has at least `min_embeddings`."""
    check_embeddings(features, labels, num_classes)
    used = labels >= 0
    members = one_hot(labels[used], num_classes).T.to(features.dtype)
    counts = members.sum(dim=1)
    present = counts >= min_embeddings
    return members[present] @ normalize(features[used], dim=1) / counts[present, None]
