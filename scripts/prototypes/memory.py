# SPDX-License-Identifier: Apache-2.0
"""Memory bank with prototypes for each class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

STRATEGIES = ("replace", "fifo")


class PrototypeMemory(nn.Module):
    """Store up to `elements_per_class` embeddings of each class as the prototypes of the class.

    Only `update` writes; reading changes nothing. Prototypes and counts are buffers, so they move with `.to()` and are
    saved in checkpoints.

    Strategies:
        `replace`: new embeddings of a class replace all its old ones, even if there are fewer new ones (the method
            document and SS-Net, Wu et al., MICCAI 2022).
        `fifo`: first in, first out. New embeddings are added at the front and the oldest are dropped
            (SemiSeg-Contrastive, Alonso et al., ICCV 2021).

    Args:
        num_classes: K, background included.
        feature_dim: D, width of an embedding.
        elements_per_class: maximum number of prototypes of a class.
        strategy: `replace` or `fifo`.
        first_insertion: maximum number of embeddings that the first update of a class stores, at least
            `elements_per_class`, which is also the default. The published code of SemiSeg-Contrastive does not limit
            the first update of `fifo`; to reproduce it, give the number of embeddings that a step supplies.

    Raises:
        ValueError: for a count below 1, an unknown strategy, or a `first_insertion` below `elements_per_class`.

    Example:
        >>> memory = PrototypeMemory(num_classes=3, feature_dim=2, elements_per_class=2, strategy="fifo")
        >>> memory.update({1: torch.tensor([[1.0, 0.0]])})
        >>> memory.update({1: torch.tensor([[0.0, 1.0], [0.0, 2.0]])})
        >>> memory.prototypes(1)
        tensor([[0., 1.],
                [0., 2.]])
        >>> memory.summary()
        {0: 0, 1: 2, 2: 0}
    """

    features: torch.Tensor
    counts: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        elements_per_class: int = 32,
        strategy: str = "replace",
        first_insertion: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_classes", num_classes),
            ("feature_dim", feature_dim),
            ("elements_per_class", elements_per_class),
        ):
            if value < 1:
                raise ValueError(f"PrototypeMemory: {name} must be at least 1, got {value}.")
        if strategy not in STRATEGIES:
            raise ValueError(f"PrototypeMemory: strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
        if first_insertion is not None and first_insertion < elements_per_class:
            raise ValueError(
                f"PrototypeMemory: first_insertion ({first_insertion}) is below elements_per_class "
                f"({elements_per_class})."
            )
        self.strategy = strategy
        self.elements_per_class = elements_per_class
        self.register_buffer("features", torch.zeros(num_classes, first_insertion or elements_per_class, feature_dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return self.features.shape[0]

    @property
    def feature_dim(self) -> int:
        """D, width of an embedding."""
        return self.features.shape[2]

    def prototypes(self, class_id: int) -> torch.Tensor:
        """Return the prototypes `(M, D)` of a class, newest first for `fifo`; M is 0 for a class never seen."""
        return self.features[class_id, : int(self.counts[class_id])]

    def __getitem__(self, class_id: int) -> torch.Tensor:
        """Return `prototypes(class_id)`, in the notation of the method document.

        Raises:
            IndexError: for a class outside [0, K).
        """
        if not 0 <= class_id < self.num_classes:
            raise IndexError(f"PrototypeMemory holds classes 0 to {self.num_classes - 1}, got class {class_id}.")
        return self.prototypes(class_id)

    def __len__(self) -> int:
        """Return K, so that `list(memory)` gives the prototypes of each class."""
        return self.num_classes

    @torch.no_grad()
    def update(self, embeddings_by_class: Mapping[int, torch.Tensor]) -> None:
        """Write new embeddings; a class without new finite embeddings keeps its prototypes.

        Args:
            embeddings_by_class: maps a class index to embeddings `(N, D)`, best or newest first. Embeddings that do not
                fit are dropped. Embeddings with a NaN or an infinity are also dropped, because they would otherwise
                stay in the memory for many steps.

        Raises:
            ValueError: for a class outside [0, K) or embeddings that are not `(N, D)`.
        """
        self.check(embeddings_by_class)
        for class_id, embeddings in embeddings_by_class.items():
            embeddings = embeddings.detach().to(self.features)
            embeddings = embeddings[embeddings.isfinite().all(dim=1)]
            if len(embeddings) == 0:
                continue
            limit = self.elements_per_class if self.counts[class_id] > 0 else self.features.shape[1]
            if self.strategy == "fifo":
                embeddings = torch.cat([embeddings, self.prototypes(class_id)])
            embeddings = embeddings[:limit]
            self.features[class_id, : len(embeddings)] = embeddings
            self.features[class_id, len(embeddings) :] = 0
            self.counts[class_id] = len(embeddings)

    def check(self, embeddings_by_class: Mapping[int, torch.Tensor]) -> None:
        """Raise the errors of `update` without writing anything."""
        for class_id, embeddings in embeddings_by_class.items():
            if not 0 <= class_id < self.num_classes:
                raise ValueError(f"PrototypeMemory holds classes 0 to {self.num_classes - 1}, got class {class_id}.")
            if embeddings.ndim != 2 or embeddings.shape[1] != self.feature_dim:
                raise ValueError(
                    f"PrototypeMemory expects embeddings of shape (N, {self.feature_dim}), got "
                    f"{tuple(embeddings.shape)} for class {class_id}."
                )

    def summary(self) -> dict[int, int]:
        """Number of prototypes of each class."""
        return dict(enumerate(self.counts.tolist()))
