# SPDX-License-Identifier: Apache-2.0
"""The handler that writes the memory bank in each training step."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from scripts.errors import UserError
from scripts.losses.base import TrainingBatch
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import BY_SELECTOR, ClassSelectors, check_selection, choose_embeddings
from scripts.prototypes.voxels import (
    NO_CLASS,
    check_labels,
    group_by_class,
    labels_on_grid,
    pseudo_labels,
    sample_group,
    voxel_embeddings,
)

SOURCES = ("labelled", "both")
ORIGINS = ("network", "teacher")


class MemoryBankUpdater:
    """Write projected features of the current batch to a `PrototypeMemory`, once per step.

    It runs between the forward pass and the loss, as in the method document and SS-Net. It works with MONAI's
    `SupervisedTrainer` and `FeatureInferer`.

    Labelled voxels are stored under their label if the network predicts them correctly. Unlabelled voxels are stored
    under their pseudo-label if it is confident enough. Labelled voxels take precedence if there is not room for all.

    Args:
        memory: the memory to write to.
        projection_head: applied to embeddings in evaluation mode without gradient; `None` stores the features
            themselves.
        source: `labelled`, or `both` to fill the remaining room with confident unlabelled voxels.
        features_from: `network` uses the features of the training step; `teacher` runs the inferer's teacher on the
            labelled images and uses its features and predictions (SemiSeg-Contrastive).
        confidence: minimum probability in [0, 1] of an unlabelled voxel's pseudo-label.
        labelled_confidence: minimum probability in [0, 1] of a labelled voxel's label (SemiSeg-Contrastive: 0.95).
        only_correct: whether wrongly predicted labelled voxels are left out.
        include_background: whether class 0 has prototypes.
        selection: which voxels to take if there are more than needed: `random` ones; those with the highest probability
            of the class (`confidence`); or those with the `highest` or `lowest` score of the class's selector (the
            published codes use `lowest`).
        selectors: needed for `highest` and `lowest`.
        embeddings_per_step: maximum number of embeddings per class and step; `None` for the memory's size.

    Raises:
        ValueError: at construction for an invalid argument; when called, for labels out of range.
        UserError: when called, if `features_from` is `teacher` and the inferer has no teacher.

    Example:
        >>> from types import SimpleNamespace
        >>> memory = PrototypeMemory(num_classes=2, feature_dim=1)
        >>> images = torch.tensor([-1.0, 1.0, 3.0]).reshape(1, 1, 1, 1, 3)
        >>> batch = TrainingBatch(
        ...     logits=torch.cat([-images, images], dim=1),  # predicts class 1 where the image is positive
        ...     features=images,
        ...     labels=torch.tensor([0, 1, 0]).reshape(1, 1, 1, 3),
        ...     images=images,
        ...     forward_pass=None,
        ... )
        >>> engine = SimpleNamespace(state=SimpleNamespace(output={"pred": batch}))  # stands for MONAI's trainer
        >>> MemoryBankUpdater(memory, include_background=True)(engine)
        >>> memory.prototypes(0), memory.prototypes(1)  # the third voxel is predicted wrongly
        (tensor([[-1.]]), tensor([[1.]]))
    """

    def __init__(
        self,
        memory: PrototypeMemory,
        projection_head: nn.Module | None = None,
        source: str = "labelled",
        features_from: str = "network",
        confidence: float = 0.95,
        labelled_confidence: float = 0.0,
        only_correct: bool = True,
        include_background: bool = False,
        selection: str = "random",
        selectors: ClassSelectors | None = None,
        embeddings_per_step: int | None = None,
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"MemoryBankUpdater: source must be one of {', '.join(SOURCES)}, got {source!r}.")
        if features_from not in ORIGINS:
            raise ValueError(f"MemoryBankUpdater: features_from must be network or teacher, got {features_from!r}.")
        if features_from == "teacher" and source != "labelled":
            raise ValueError("MemoryBankUpdater: features_from='teacher' goes with source='labelled' only.")
        for name, value in (("confidence", confidence), ("labelled_confidence", labelled_confidence)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"MemoryBankUpdater: {name} must be in [0, 1], got {value}.")
        check_selection(selection, has_selectors=selectors is not None)
        if embeddings_per_step is not None and embeddings_per_step < 1:
            raise ValueError(f"MemoryBankUpdater: embeddings_per_step must be at least 1, got {embeddings_per_step}.")
        self.memory = memory
        self.projection_head = projection_head
        self.source, self.features_from = source, features_from
        self.confidence, self.labelled_confidence = confidence, labelled_confidence
        self.only_correct = only_correct
        self.include_background = include_background
        self.selection = selection
        self.selectors = selectors
        self.embeddings_per_step = embeddings_per_step or memory.elements_per_class

    def attach(self, engine: Engine) -> None:
        """Update after each forward pass of `engine`."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Write the embeddings of the engine's current output, a `TrainingBatch`."""
        batch: TrainingBatch = engine.state.output[Keys.PRED]
        check_labels(batch.labels, self.memory.num_classes)
        logits, features = self._labelled_pass(batch)
        parts = [(features, *self._labelled_classes(logits, batch.labels))]
        if self.source == "both" and batch.num_unlabelled > 0:
            parts.append((batch.unlabelled_features, *pseudo_labels(batch.target_logits, self.confidence)))
        self.memory.update(self._embeddings_by_class(parts))

    @torch.no_grad()
    def sample(self, batch: TrainingBatch, per_class: int) -> dict[str, dict[int, torch.Tensor]]:
        """Return projected features of random voxels of a batch, for plots; the memory is not changed.

        Args:
            batch: a training step's data and predictions.
            per_class: maximum number of voxels for each kind and class.

        Returns:
            Embeddings `(N, D)` by kind and class: labelled voxels by their label, unlabelled ones by the predicted
            class.
        """
        # These are the network's features even if the memory stores the teacher's, because only the first process
        # calls this method, and a single process cannot run the teacher.
        parts = {"labelled voxel": (batch.labelled_features, batch.labels)}
        if batch.num_unlabelled > 0:
            parts["unlabelled voxel"] = (batch.unlabelled_features, pseudo_labels(batch.target_logits, 0.0)[0])
        found: dict[str, dict[int, torch.Tensor]] = {}
        for kind, (features, classes) in parts.items():
            on_grid = labels_on_grid(classes, features.shape[2:]).reshape(-1)
            for c, where in enumerate(group_by_class(on_grid, self.memory.num_classes)):
                if len(where) > 0:
                    chosen = voxel_embeddings(features, sample_group(where, per_class))
                    found.setdefault(kind, {})[c] = self._project(chosen)
        return found

    def _labelled_pass(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and features of the labelled cases, from the network or the teacher."""
        if self.features_from == "network":
            return batch.labelled_logits, batch.labelled_features
        if batch.teacher_pass is None:
            raise UserError(
                "MemoryBankUpdater has features_from='teacher', but there is no teacher: set pseudo_label_teacher to "
                "'@teacher', or features_from to 'network'."
            )
        return batch.teacher_pass(batch.labelled_images)

    def _labelled_classes(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the classes of the voxels that may be stored, and the probabilities of their labels if needed."""
        scores = None
        if self.selection == "confidence" or self.labelled_confidence > 0:
            # The score is the probability of the label; for a wrongly predicted voxel it is not the largest one.
            scores = logits.softmax(dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
            labels = labels.masked_fill(scores < self.labelled_confidence, NO_CLASS)
        if self.only_correct:  # on CPUs `max` is faster than `argmax`
            labels = labels.masked_fill(logits.max(dim=1).indices != labels, NO_CLASS)
        return labels, scores

    def _embeddings_by_class(
        self, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
    ) -> dict[int, torch.Tensor]:
        """Project and select features of each class, from the first part (labelled) to the last.

        Args:
            parts: features `(B, C, d, h, w)`; classes `(B, D, H, W)` on any grid; probabilities, like classes.
        """
        chosen: dict[int, list[torch.Tensor]] = {}
        for features, classes, scores in parts:
            shape = features.shape[2:]
            probabilities = None if scores is None else labels_on_grid(scores, shape).reshape(-1)
            groups = group_by_class(labels_on_grid(classes, shape).reshape(-1), self.memory.num_classes)
            for c, where in enumerate(groups):
                room = self.embeddings_per_step - sum(len(part) for part in chosen.get(c, []))
                if (c > 0 or self.include_background) and len(where) > 0 and room > 0:
                    if self.selection == "random":  # draw first, so that only the drawn embeddings are copied
                        where = sample_group(where, room)
                    part = voxel_embeddings(features, where)
                    own = None if probabilities is None else probabilities[where]
                    chosen.setdefault(c, []).append(self._choose(c, part, room, own))
        return {c: torch.cat(embeddings) for c, embeddings in chosen.items()}

    def _choose(
        self, class_id: int, embeddings: torch.Tensor, room: int, probabilities: torch.Tensor | None
    ) -> torch.Tensor:
        if self.selection in BY_SELECTOR:  # selectors score projections, so project all candidates
            return choose_embeddings(
                class_id, self._project(embeddings), room, self.selection, selectors=self.selectors
            )
        return self._project(choose_embeddings(class_id, embeddings, room, self.selection, probabilities))

    def _project(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.projection_head is None:
            return embeddings
        was_training = self.projection_head.training
        self.projection_head.eval()
        try:
            return self.projection_head(embeddings)
        finally:
            self.projection_head.train(was_training)
