# SPDX-License-Identifier: Apache-2.0
"""The method document's own interface: memory, contrast and auxiliary losses behind four methods."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from scripts.prototypes.clusters import check_margin, compactness, separation
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selection import check_selection, choose_embeddings
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import (
    check_embeddings,
    check_labels,
    confident_classes,
    labels_on_grid,
    voxel_embeddings,
)

PREDICTIONS = ("logits", "probabilities")


class ContrastivePrototypeManager(nn.Module):
    """Everything that a hand-written training loop needs, one call a step: `update_and_compute_loss`.

    A thin face over `PrototypeMemory`, `ContrastivePrototypeLoss` and `ClassSelectors`; the bundle's own training uses
    these directly. Features come projected: `(N, D)`, or maps `(B, D, ...)` on a grid that may be coarser than that of
    labels and predictions. A module: `state_dict` holds memory and selectors, and a manager that was saved and restored
    goes on as if it had never stopped.

    Where it reads more into the document than is written there: see `docs/manager.md`.

    Args:
        num_classes: K, background included.
        feature_dim: D.
        elements_per_class: most prototypes a class.
        use_learned_selector: whether features and prototypes are weighted by learned selectors.
        predictions: what `update_and_compute_loss` is given, `logits` or `probabilities`.
        confidence: least probability in [0, 1] for a pseudo-label to count.
        selection: which features of a class enter the memory when there are more than it holds, as in
            `scripts.prototypes.selection.select_indices`; `None` for `lowest` with selectors, which is the document's
            sort (ascending, the first kept), and `random` without.
        margin: cosine distance in (0, 2] that class means should have from each other.
        divisor: see `ContrastivePrototypeLoss`.
        memory_weighting: see `ClassSelectors`.

    Raises:
        ValueError: for a wrong argument; in the methods for input that does not fit, see there.
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
        """The prototypes; `memory.prototypes(c)` are those of class c."""
        return self.loss.memory

    def memory_summary(self) -> dict[int, int]:
        """How many prototypes each class holds."""
        return self.memory.summary()

    def get_selectors(self) -> tuple[nn.ModuleList, nn.ModuleList] | tuple[None, None]:
        """Feature selectors and memory selectors, one of each a class, or `(None, None)`.

        The second list is empty for `memory_weighting="none"`.
        """
        selectors = self.loss.selectors
        return (None, None) if selectors is None else (selectors.feature, selectors.memory)

    @torch.no_grad()
    def update_memory(
        self, features_dict: Mapping[int, torch.Tensor], probabilities: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        """New features of a class take the place of its old ones; a class that is not named keeps what it has.

        Args:
            features_dict: class index to projected features `(N, D)`. Rows that hold a NaN or an infinity are left out.
            probabilities: class index to the network's probabilities `(N,)`, for `selection="confidence"`.

        Raises:
            ValueError: for a class or a width that the memory does not have.
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
        """`ContrastivePrototypeLoss` of projected features and their classes; writes nothing into the memory.

        Args:
            features: `(N, D)` or maps `(B, D, ...)`.
            class_labels: `(N,)` or `(B, ...)` on the features' grid, in [0, K) or -1 for no class.

        Returns:
            A scalar; 0 with a zero gradient where no class has two features and two prototypes.
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
        """Write this step's features into the memory, then compute the weighted sum of three losses with gradient.

        Contrast with the memory; compactness within a class and separation of classes among the features themselves
        (`scripts.prototypes.clusters`). A part whose weight is 0 is not computed.

        Args:
            features: projected, `(N, D)` or maps `(B, D, ...)`.
            predictions: `(N, K)` or maps `(B, K, ...)`, logits or probabilities as the constructor was told.
            labels: classes `(N,)`, `(B, ...)` or `(B, 1, ...)`, in [0, K) or -1 for no class; `None` for pseudo-labels,
                the most probable class where its probability reaches the confidence.
            is_labeled: `False` leaves `labels` unread and takes pseudo-labels.
            contrastive_weight: of the contrast.
            intra_weight: of the compactness.
            inter_weight: of the separation.

        Returns:
            The loss, a scalar, and its parts unweighted as numbers: `contrastive`, `intra`, `inter`, and the sum as
            `total`. What has nothing to act on is 0, with a zero gradient.

        Raises:
            ValueError: for features that hold a NaN or an infinity, a width or number of classes that is not the
                manager's, labels out of range, probabilities that are none, or parts of different sizes.
        """
        embeddings = voxel_embeddings(features.as_subclass(torch.Tensor)).to(self.memory.features.dtype)
        self._check_features(embeddings)
        shape = features.shape[2:]
        probabilities = self._probabilities(predictions.detach().as_subclass(torch.Tensor), shape)
        if len(probabilities) != len(embeddings):
            raise ValueError(f"There are {len(embeddings)} features, but predictions for {len(probabilities)}.")
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
                f"ContrastivePrototypeManager holds features of width {self.memory.feature_dim} (feature_dim), "
                f"got {embeddings.shape[1]}: project them first."
            )
        if not bool(embeddings.isfinite().all()):
            bad = int((~embeddings.isfinite().all(dim=1)).sum())
            raise ValueError(
                f"{bad} of {len(embeddings)} features hold a NaN or an infinity: skip this step and check its images "
                "and the learning rate."
            )

    def _probabilities(self, predictions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Rows `(N, K)` on the features' grid."""
        if predictions.ndim < 2 or predictions.shape[1] != self.memory.num_classes:
            raise ValueError(
                f"predictions must have {self.memory.num_classes} classes on axis 1, got the shape "
                f"{tuple(predictions.shape)}."
            )
        if bool(predictions.isnan().any()):
            raise ValueError("predictions hold a NaN: skip this step and look at its images and learning rate.")
        if self.predictions == "logits":
            predictions = predictions.float().softmax(dim=1)
        elif predictions.numel() > 0 and not (
            predictions.min() >= 0 and (predictions.sum(dim=1) - 1).abs().max() < 0.05
        ):
            raise ValueError(
                "The manager was told that predictions are probabilities, but they are negative or do not add up to 1 "
                "over the classes: give their softmax, or construct it with predictions='logits'."
            )
        if predictions.ndim > 2:
            predictions = torch.stack([labels_on_grid(one, shape) for one in predictions.unbind(dim=1)], dim=1)
        return voxel_embeddings(predictions)

    def _given_classes(self, labels: torch.Tensor, ndim: int, shape: torch.Size) -> torch.Tensor:
        """Flat classes on the features' grid."""
        check_labels(labels, self.memory.num_classes)
        labels = labels[:, 0] if labels.ndim == ndim else labels
        return (labels_on_grid(labels, shape) if labels.ndim > 1 else labels).reshape(-1).long()
