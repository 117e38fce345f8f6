# SPDX-License-Identifier: Apache-2.0
"""Class-wise memory bank: what each class has looked like in feature space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

STRATEGIES = ("replace", "fifo")


class PrototypeMemory(nn.Module):
    """Up to `elements_per_class` feature embeddings for each class, held in buffers.

    `update` is the only writer and reading changes nothing. Rows and counts are buffers, so they move with `.to()`, are
    in every checkpoint, and a restored memory goes on as if it had never been saved.

    Strategies:
        `replace`: the new embeddings of a class take the place of all its old ones, even if they are fewer (the method
        document and SS-Net, Wu et al., MICCAI 2022).
        `fifo`: new embeddings go in front, the oldest fall out at the end (SemiSeg-Contrastive, Alonso et al., ICCV
            2021).

    Args:
        num_classes: K, background included.
        feature_dim: D, width of a row.
        elements_per_class: most embeddings a class holds.
        strategy: `replace` or `fifo`.
        first_insertion: most embeddings that the first insertion of a class may bring, at least `elements_per_class`
            (`None`: equal to it). The published code of SemiSeg-Contrastive does not cut the first insertion of `fifo`;
            to follow it, give the number of embeddings that a step offers.

    Raises:
        ValueError: for a count below 1, an unknown strategy, or a `first_insertion` below `elements_per_class`.
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
        """D, width of a row."""
        return self.features.shape[2]

    def prototypes(self, class_id: int) -> torch.Tensor:
        """The embeddings `(M, D)` of a class, newest first for `fifo`; M is 0 for a class that was never seen."""
        return self.features[class_id, : int(self.counts[class_id])]

    @torch.no_grad()
    def update(self, embeddings_by_class: Mapping[int, torch.Tensor]) -> None:
        """Write new embeddings. Classes that are not named, or come with no finite row, keep what they have.

        Args:
            embeddings_by_class: class index to `(N, D)`, best or newest row first; what does not fit is dropped.
                So are embeddings that hold a NaN or an infinity: a bad step must not poison the bank.

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
        """Refuse what `update` refuses, before anything is written: the bank stays as it was."""
        for class_id, embeddings in embeddings_by_class.items():
            if not 0 <= class_id < self.num_classes:
                raise ValueError(f"PrototypeMemory holds classes 0 to {self.num_classes - 1}, got class {class_id}.")
            if embeddings.ndim != 2 or embeddings.shape[1] != self.feature_dim:
                raise ValueError(
                    f"PrototypeMemory expects embeddings of shape (N, {self.feature_dim}), got "
                    f"{tuple(embeddings.shape)} for class {class_id}."
                )

    def summary(self) -> dict[int, int]:
        """How many embeddings each class holds."""
        return dict(enumerate(self.counts.tolist()))
