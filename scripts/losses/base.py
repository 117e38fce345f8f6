# SPDX-License-Identifier: Apache-2.0
"""What a loss term receives, what every term has in common, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from scripts.losses.schedules import RampUp
from scripts.prototypes.voxels import NO_CLASS


class ForwardPass(Protocol):
    """A further pass of the network being trained, under the same autocast and padding as the step's own."""

    def __call__(self, images: torch.Tensor, keep_statistics: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, K, D, H, W)` and features `(B, F, d, h, w)` of images `(B, C, D, H, W)`, float32.

        With `keep_statistics` running statistics of norms stay as they are.
        """


@dataclass(frozen=True)
class TrainingBatch:
    """Everything that one training step offers to the terms; the L labelled cases come first, then the U unlabelled.

    Attributes:
        logits: the network's output for all cases, `(L + U, K, D, H, W)`.
        features: embeddings from the tap, `(L + U, C, d, h, w)`; may be coarser than the image.
        labels: classes of the labelled cases, `(L, D, H, W)`, int64 in [0, K), or `NO_CLASS` for voxels to ignore.
        teacher_logits: the teacher's output for the unlabelled cases, `(U, K, D, H, W)`, or `None` without a teacher.
        images: what the network saw, `(L + U, C, D, H, W)`; only terms with passes of their own need it.
        weak_images: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, or `None`.
        forward_pass: for terms with passes of their own.
    """

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor
    teacher_logits: torch.Tensor | None = None
    images: torch.Tensor | None = None
    weak_images: torch.Tensor | None = None
    forward_pass: ForwardPass | None = None

    @property
    def num_labelled(self) -> int:
        """L."""
        return self.labels.shape[0]

    @property
    def num_unlabelled(self) -> int:
        """U."""
        return self.logits.shape[0] - self.labels.shape[0]

    @property
    def labelled_logits(self) -> torch.Tensor:
        """`(L, K, D, H, W)`."""
        return self.logits[: self.num_labelled]

    @property
    def unlabelled_logits(self) -> torch.Tensor:
        """`(U, K, D, H, W)`."""
        return self.logits[self.num_labelled :]

    @property
    def labelled_features(self) -> torch.Tensor:
        """`(L, C, d, h, w)`."""
        return self.features[: self.num_labelled]

    @property
    def unlabelled_features(self) -> torch.Tensor:
        """`(U, C, d, h, w)`."""
        return self.features[self.num_labelled :]

    @property
    def labelled_images(self) -> torch.Tensor:
        """`(L, C, D, H, W)`."""
        return self.images[: self.num_labelled]

    @property
    def unlabelled_images(self) -> torch.Tensor:
        """`(U, C, D, H, W)`."""
        return self.images[self.num_labelled :]

    @cached_property
    def ignored(self) -> torch.Tensor | None:
        """Labelled voxels that take no part, bool `(L, D, H, W)`; `None` where all of them count."""
        ignored = self.labels == NO_CLASS
        return ignored if bool(ignored.any()) else None

    @property
    def labelled_voxels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the labelled voxels that count, for losses that sum over the whole batch.

        `(L, K, D, H, W)` and `(L, D, H, W)`; where voxels are ignored the N others in one line, `(1, K, N)` and
        `(1, N)`, and N may be 0.
        """
        if self.ignored is None:
            return self.labelled_logits, self.labels
        counted = ~self.ignored
        return self.labelled_logits.movedim(1, -1)[counted].T[None], self.labels[counted][None]

    @property
    def target_logits(self) -> torch.Tensor:
        """Logits that pseudo-labels are made of: the teacher's, or without one the network's own; no gradient."""
        return (self.unlabelled_logits if self.teacher_logits is None else self.teacher_logits).detach()


class LossTerm(nn.Module):
    """One summand of the training loss. Subclasses implement `compute`.

    Args:
        weight: a number, or a schedule with `at(step, max_steps)` such as `RampUp`.
    """

    def __init__(self, weight: float | RampUp = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, step: int, max_steps: int) -> float:
        """The weight at a step (from 1) of a run of `max_steps`."""
        return float(self.weight.at(step, max_steps) if hasattr(self.weight, "at") else self.weight)

    def compute(self, step: TrainingBatch) -> torch.Tensor:
        """The unweighted value, a scalar; 0 with a zero gradient where the step holds nothing for this term."""
        raise NotImplementedError


class WeightedLoss(nn.Module):
    """Sum of named terms, each with its weight; the `loss_function` of MONAI's `SupervisedTrainer`.

    A term whose weight is 0 is not computed. Weights follow `step`, which `TermProgress` sets before each iteration.

    Args:
        terms: name to `LossTerm`; at least one.
        max_steps: length of the run that schedules refer to.

    Raises:
        ValueError: for an empty mapping or something in it that is no `LossTerm`.
    """

    def __init__(self, terms: Mapping[str, LossTerm], max_steps: int) -> None:
        super().__init__()
        if not terms:
            raise ValueError("A method needs at least one loss term, e.g. `supervised`.")
        for name, term in terms.items():
            if name == "total":
                raise ValueError("A loss term cannot be called 'total': that is the name of their sum.")
            if not isinstance(term, LossTerm):
                raise ValueError(f"Loss term '{name}' must be a scripts.terms LossTerm, got {type(term).__name__}.")
        self.terms = nn.ModuleDict(dict(terms))
        self.max_steps = max_steps
        self.step = 1
        self.last: dict[str, float] = {}

    def forward(self, prediction: Mapping[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: what `FeatureInferer` returns: `logits` and `features` of all cases, labelled ones first, and
                `teacher_logits` of the unlabelled ones if there is a teacher; for terms with passes of their own
                `images`, `weak_images` and the attribute `forward_pass`.
            label: `(L, 1, D, H, W)`, the labelled cases' classes.

        Returns:
            The weighted sum, a scalar.
        """
        data = TrainingBatch(
            logits=prediction["logits"],
            features=prediction["features"],
            labels=label[:, 0].long(),
            **{name: prediction.get(name) for name in ("teacher_logits", "images", "weak_images")},
            forward_pass=getattr(prediction, "forward_pass", None),
        )
        total = data.logits.new_zeros(())
        values: dict[str, torch.Tensor] = {}
        for name, term in self.terms.items():
            weight = term.weight_at(self.step, self.max_steps)
            if weight != 0.0:
                values[name] = term.compute(data)
                total = total + weight * values[name]
        if not values:
            # Before every ramp has started the trainer still calls `backward`.
            total = data.logits[:0].sum()
        self.last = {name: float(value.detach()) for name, value in values.items()}
        return total

    def scalars(self, total: torch.Tensor | float) -> dict[str, float]:
        """`Loss/total` and the unweighted value of each term computed last, as `Loss/<name>`."""
        return {
            "Loss/total": float(torch.as_tensor(total).detach()),
            **{f"Loss/{name}": value for name, value in self.last.items()},
        }
