# SPDX-License-Identifier: Apache-2.0
"""The class that the method document describes: memory, contrast and auxiliary losses in one object."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from scripts.prototypes.loss import ContrastivePrototypeLoss, check_margin, compactness, separation
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors, check_selection, choose_embeddings
from scripts.prototypes.voxels import (
    check_embeddings,
    check_labels,
    confident_classes,
    labels_on_grid,
    voxel_embeddings,
)

PREDICTIONS = ("logits", "probabilities")


class ContrastivePrototypeManager(nn.Module):
    """Contrastive prototypes for a hand-written training loop: one call of `update_and_compute_loss` per step.

    This is a thin layer over `PrototypeMemory`, `ContrastivePrototypeLoss` and `ClassSelectors`, which the training of
    this bundle uses directly. Features must be projected already: embeddings `(N, D)`, or maps `(B, D, ...)` on a grid
    that may be coarser than the grid of labels and predictions. `state_dict` holds memory and selectors.

    `docs/manager.md` lists the points that the document leaves open, and the choices made here.

    Args:
        num_classes: K, background included.
        feature_dim: D.
        elements_per_class: maximum number of prototypes of a class.
        use_learned_selector: whether learned selectors weight features and prototypes.
        predictions: what `update_and_compute_loss` receives, `logits` or `probabilities`.
        confidence: minimum probability in [0, 1] for a pseudo-label to be used.
        selection: which features of a class to store if there are more than fit in the memory, see
            `scripts.prototypes.selectors.select_indices`. `None` selects `random` without selectors and `lowest` with
            them, because the document sorts in ascending order and keeps the first.
        margin: minimum cosine distance in (0, 2] between class means.
        divisor: see `ContrastivePrototypeLoss`.
        memory_weighting: see `ClassSelectors`.

    Raises:
        ValueError: for an invalid argument, and in the methods for invalid input.

    Example:
        >>> manager = ContrastivePrototypeManager(num_classes=2, feature_dim=2)
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss, parts = manager.update_and_compute_loss(features, torch.zeros(4, 2), labels)
        >>> parts  # each feature equals the prototypes of its class, and the two classes are orthogonal
        {'contrastive': 0.0, 'intra': 0.0, 'inter': 0.0, 'total': 0.0}
        >>> manager.memory_summary()
        {0: 2, 1: 2}
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        elements_per_class: int = 32,
        use_learned_selector: bool = False,
        predictions: str = "logits",
        confidence: float = 0.9,
        selection: str | None = None,
        margin: float = 1.0,
        divisor: str = "present",
        memory_weighting: str = "normalised",
    ) -> None:
        super().__init__()
        selection = selection or ("lowest" if use_learned_selector else "random")
        if predictions not in PREDICTIONS:
            raise ValueError(f"predictions must be one of {', '.join(PREDICTIONS)}, got {predictions!r}.")
        if not 0.0 <= confidence <= 1.0:
            raise ValueError(f"confidence must be in [0, 1], got {confidence}.")
        check_margin(margin)
        check_selection(selection, has_selectors=use_learned_selector)
        self.predictions, self.confidence, self.selection, self.margin = predictions, confidence, selection, margin
        self.loss = ContrastivePrototypeLoss(
            PrototypeMemory(num_classes, feature_dim, elements_per_class),
            selectors=ClassSelectors(num_classes, feature_dim, memory_weighting) if use_learned_selector else None,
            samples_per_class=None,
            divisor=divisor,
        )

    @property
    def memory(self) -> PrototypeMemory:
        """The memory; `memory[c]` are the prototypes of class c, `(M, D)`."""
        return self.loss.memory

    def memory_summary(self) -> dict[int, int]:
        """Number of prototypes of each class."""
        return self.memory.summary()

    def get_selectors(self) -> tuple[nn.ModuleList, nn.ModuleList] | tuple[None, None]:
        """Feature selectors and memory selectors, one of each per class, or `(None, None)` without selectors.

        The second list is empty for `memory_weighting="none"`.
        """
        selectors = self.loss.selectors
        return (None, None) if selectors is None else (selectors.feature, selectors.memory)

    @torch.no_grad()
    def update_memory(
        self, features_dict: Mapping[int, torch.Tensor], probabilities: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        """Replace each given class's prototypes by new features; other classes keep theirs.

        Args:
            features_dict: maps a class index to projected features `(N, D)`. Features with a NaN or an infinity are
                ignored.
            probabilities: maps a class index to the network's probabilities `(N,)`, for `selection="confidence"`.

        Raises:
            ValueError: for a class that the memory does not have, or features of the wrong width.
        """
        self.memory.check(features_dict)
        limit, selectors = self.memory.elements_per_class, self.loss.selectors
        self.memory.update(
            {
                c: choose_embeddings(c, embeddings, limit, self.selection, (probabilities or {}).get(c), selectors)
                for c, embeddings in features_dict.items()
            }
        )

    def contrastive_class_to_class_learned_memory(
        self, features: torch.Tensor, class_labels: torch.Tensor
    ) -> torch.Tensor:
        """Compute `ContrastivePrototypeLoss` of projected features and their classes, without writing to the memory.

        Args:
            features: `(N, D)` or maps `(B, D, ...)`.
            class_labels: `(N,)` or `(B, ...)` on the features' grid, in [0, K) or -1 for no class.

        Returns:
            A scalar; 0 with a zero gradient if no class has two features and two prototypes.
        """
        return self.loss(features, class_labels.long())

    def update_and_compute_loss(
        self,
        features: torch.Tensor,
        predictions: torch.Tensor,
        labels: torch.Tensor | None,
        is_labeled: bool = True,
        contrastive_weight: float = 1.0,
        intra_weight: float = 0.1,
        inter_weight: float = 0.1,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Write this step's features to the memory, then return the weighted sum of three losses.

        The losses are the contrast of the features with the memory, the compactness of the features within classes, and
        the separation between classes (`scripts.prototypes.loss`). A loss whose weight is 0 is not computed.

        Args:
            features: projected, `(N, D)` or maps `(B, D, ...)`.
            predictions: `(N, K)` or maps `(B, K, ...)`, logits or probabilities as set in the constructor.
            labels: classes `(N,)`, `(B, ...)` or `(B, 1, ...)`, in [0, K) or -1 for no class. `None` selects
                pseudo-labels: the most probable class if its probability is at least `confidence`.
            is_labeled: `False` ignores `labels` and uses pseudo-labels.
            contrastive_weight: weight of the contrast.
            intra_weight: weight of the compactness.
            inter_weight: weight of the separation.

        Returns:
            The loss, a scalar tensor, and a dictionary of numbers: its unweighted parts `contrastive`, `intra` and
            `inter`, and their weighted sum `total`. A part without suitable features is 0 with a zero gradient.

        Raises:
            ValueError: for features with a NaN or an infinity, a wrong width or number of classes, labels out of range,
                predictions that are not probabilities, or arguments of different sizes.
        """
        embeddings = voxel_embeddings(features.as_subclass(torch.Tensor)).to(self.memory.features.dtype)
        self._check_features(embeddings)
        shape = features.shape[2:]
        probabilities = self._probabilities(predictions.detach().as_subclass(torch.Tensor), shape)
        if len(probabilities) != len(embeddings):
            raise ValueError(f"Got {len(embeddings)} features, but predictions for {len(probabilities)}.")
        if is_labeled and labels is not None:
            classes = self._given_classes(labels.as_subclass(torch.Tensor), features.ndim, shape)
        else:
            classes, _ = confident_classes(probabilities, self.confidence)
        check_embeddings(embeddings, classes, self.memory.num_classes)

        members = {c: classes == c for c in classes.unique().tolist() if c >= 0}
        self.update_memory(
            {c: embeddings[where] for c, where in members.items()},
            {c: probabilities[where, c] for c, where in members.items()},
        )
        return self._weighted_sum(embeddings, classes, contrastive_weight, intra_weight, inter_weight)

    def _weighted_sum(
        self, embeddings: torch.Tensor, classes: torch.Tensor, contrastive: float, intra: float, inter: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        count = self.memory.num_classes
        parts = {
            "contrastive": (contrastive, lambda: self.loss(embeddings, classes)),
            "intra": (intra, lambda: compactness(embeddings, classes, count)),
            "inter": (inter, lambda: separation(embeddings, classes, count, self.margin)),
        }
        values = {name: compute() for name, (weight, compute) in parts.items() if weight != 0}
        total = embeddings[:0].sum() + sum(parts[name][0] * value for name, value in values.items())
        return total, {name: float(value.detach()) for name, value in (values | {"total": total}).items()}

    def _check_features(self, embeddings: torch.Tensor) -> None:
        if embeddings.shape[1] != self.memory.feature_dim:
            raise ValueError(
                f"ContrastivePrototypeManager needs features of width {self.memory.feature_dim} (feature_dim), got "
                f"{embeddings.shape[1]}: project them first."
            )
        if not bool(embeddings.isfinite().all()):
            bad = int((~embeddings.isfinite().all(dim=1)).sum())
            raise ValueError(
                f"{bad} of {len(embeddings)} features have a NaN or an infinity: skip this step and check its images "
                "and the learning rate."
            )

    def _probabilities(self, predictions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Convert the predictions to probabilities `(N, K)` on the features' grid."""
        if predictions.ndim < 2 or predictions.shape[1] != self.memory.num_classes:
            raise ValueError(
                f"predictions must have {self.memory.num_classes} classes on axis 1, got shape "
                f"{tuple(predictions.shape)}."
            )
        if bool(predictions.isnan().any()):
            raise ValueError("predictions have a NaN: skip this step and check its images and the learning rate.")
        if self.predictions == "logits":
            predictions = predictions.float().softmax(dim=1)
        elif predictions.numel() > 0 and not (
            predictions.min() >= 0 and (predictions.sum(dim=1) - 1).abs().max() < 0.05
        ):
            raise ValueError(
                "predictions are not probabilities (negative, or not adding up to 1 over the classes): pass their "
                "softmax, or construct the manager with predictions='logits'."
            )
        if predictions.ndim > 2:
            predictions = torch.stack([labels_on_grid(one, shape) for one in predictions.unbind(dim=1)], dim=1)
        return voxel_embeddings(predictions)

    def _given_classes(self, labels: torch.Tensor, ndim: int, shape: torch.Size) -> torch.Tensor:
        """Bring the labels to the features' grid and flatten them."""
        check_labels(labels, self.memory.num_classes)
        labels = labels[:, 0] if labels.ndim == ndim else labels
        return (labels_on_grid(labels, shape) if labels.ndim > 1 else labels).reshape(-1).long()
