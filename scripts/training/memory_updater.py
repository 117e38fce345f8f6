# SPDX-License-Identifier: Apache-2.0
"""The handler that fills the memory bank in every training iteration."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from scripts.errors import UserError
from scripts.losses.base import TrainingBatch
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selection import BY_SELECTOR, check_selection, choose_embeddings
from scripts.prototypes.selectors import ClassSelectors
from scripts.prototypes.voxels import NO_CLASS, check_labels, labels_on_grid, pseudo_labels, voxel_embeddings

SOURCES = ("labelled", "both")
ORIGINS = ("network", "teacher")


class MemoryBankUpdater:
    """Write projected features of the current batch into a `PrototypeMemory`, once per iteration.

    It acts when the forward pass is complete and the loss is not yet computed, as the method document and SS-Net do, on
    MONAI's stock `SupervisedTrainer` with `FeatureInferer`.

    Labelled voxels enter under their label, if the network predicts them correctly; unlabelled voxels under their
    pseudo-label, if it is confident enough. Labelled embeddings come before unlabelled ones, so they are kept first.

    Args:
        memory: what is written.
        projection_head: applied to embeddings in evaluation mode and without gradient; `None` stores plain embeddings.
        source: `labelled`, or `both` to let confident unlabelled voxels in where labelled ones leave room.
        features_from: `network`, what this step computed anyway, or `teacher`, a further pass of the inferer's teacher
            on the labelled images (SemiSeg-Contrastive), whose predictions then decide too.
        confidence: least probability in [0, 1] of an unlabelled voxel.
        labelled_confidence: least probability in [0, 1] of a labelled voxel's label (SemiSeg-Contrastive: 0.95).
        only_correct: whether labelled voxels that are predicted wrongly stay out.
        include_background: whether class 0 has prototypes.
        selection: which voxels are taken when there are more than wanted: `random`; `confidence`, by the network's
            probability of the class; `highest` or `lowest`, by the class's selector (published codes: `lowest`).
        selectors: for `highest` and `lowest`.
        embeddings_per_step: most embeddings of a class that a step offers; `None` for as many as the memory holds.

    Raises:
        ValueError: for an unknown `source`, `features_from` or `selection`, a confidence outside [0, 1],
            `embeddings_per_step` below 1, a `selection` that needs selectors when there are none, or the teacher's
            features with `both`; when called, for labels out of range.
        UserError: when called, for the teacher's features when the inferer has no teacher.
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
        shape = features.shape[2:]
        classes, scores = self._labelled_classes(logits, batch.labels)
        parts = [(features, labels_on_grid(classes, shape), labels_on_grid(scores, shape))]
        if self.source == "both" and batch.num_unlabelled > 0:
            classes, scores = pseudo_labels(batch.target_logits, self.confidence)
            parts.append((batch.unlabelled_features, labels_on_grid(classes, shape), labels_on_grid(scores, shape)))
        self.memory.update(self._embeddings_by_class(parts))

    def _labelled_pass(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and features of the labelled cases, from where `features_from` says."""
        if self.features_from == "network":
            return batch.labelled_logits, batch.labelled_features
        if batch.teacher_pass is None:
            raise UserError(
                "The memory is to hold the teacher's features (features_from), but there is no teacher: set "
                "pseudo_label_teacher to '@teacher', or features_from to 'network'."
            )
        return batch.teacher_pass(batch.labelled_images)

    def _labelled_classes(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Ranked by the probability of the label, which for a wrong voxel is not the largest one.
        scores = logits.softmax(dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        labels = labels.masked_fill(scores < self.labelled_confidence, NO_CLASS)
        return (labels.masked_fill(logits.argmax(dim=1) != labels, NO_CLASS) if self.only_correct else labels), scores

    def _embeddings_by_class(
        self, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> dict[int, torch.Tensor]:
        """Project and choose features of each class, labelled part first."""
        chosen: dict[int, list[torch.Tensor]] = {}
        for features, classes, probabilities in parts:
            embeddings = voxel_embeddings(features)
            flat, flat_probabilities = classes.reshape(-1), probabilities.reshape(-1)
            for c in range(0 if self.include_background else 1, self.memory.num_classes):
                where = (flat == c).nonzero()[:, 0]
                room = self.embeddings_per_step - sum(len(part) for part in chosen.get(c, []))
                if len(where) > 0 and room > 0:
                    chosen.setdefault(c, []).append(self._choose(c, embeddings[where], room, flat_probabilities[where]))
        return {c: torch.cat(embeddings) for c, embeddings in chosen.items()}

    def _choose(self, class_id: int, embeddings: torch.Tensor, room: int, probabilities: torch.Tensor) -> torch.Tensor:
        if self.selection in BY_SELECTOR:  # it judges projections, so all candidates are projected
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
