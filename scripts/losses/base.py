# SPDX-License-Identifier: Apache-2.0
"""The batch of a training step, the base class of the loss terms, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from scripts.losses.schedules import Schedule
from scripts.prototypes.voxels import NO_CLASS


class ForwardPass(Protocol):
    """An additional pass of the network being trained, with the same autocast and padding as the step's main pass."""

    def __call__(
        self, images: torch.Tensor, keep_statistics: bool = True, fixed_parameters: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits `(B, K, D, H, W)` and features `(B, F, d, h, w)` of images `(B, C, D, H, W)`, float32.

        With `keep_statistics`, the running statistics of norms do not change. With `fixed_parameters`, gradients flow
        to the images only, and the pass stores fewer activations.
        """


TeacherPass = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A pass of the teacher: images to logits and features as in `ForwardPass`, without gradient."""


@dataclass(frozen=True, eq=False, repr=False)
class TrainingBatch:
    """Data and predictions of one training step: L labelled cases, followed by U unlabelled ones.

    `FeatureInferer` builds it once per step; `MemoryBankUpdater`, the losses and `GradientGuard` receive the same
    object. It is not a list of cases, so the trainer needs `decollate=False`.

    Attributes:
        logits: the network's output for all cases, `(L + U, K, D, H, W)`.
        features: output of the feature layer, `(L + U, F, d, h, w)`; may be coarser than the image.
        labels: classes of the labelled cases, `(L, D, H, W)`, int64 in [0, K), or `NO_CLASS` for voxels to ignore.
        images: the network's input, `(L + U, C, D, H, W)`.
        forward_pass: runs the network once more, for losses on changed images.
        weak_images: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, or `None`.
        teacher_logits: the teacher's output for `weak_images`, `(U, K, D, H, W)`, or `None` without a teacher.
        teacher_pass: runs the teacher once more, or `None` without a teacher.
        deep_features: outputs of other layers by layer name, `(L + U, F, d, h, w)` each, for deep supervision.
        cases: names of the cases that this process loaded, for messages.
    """

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor
    forward_pass: ForwardPass
    weak_images: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None
    teacher_pass: TeacherPass | None = None
    deep_features: Mapping[str, torch.Tensor] = field(default_factory=dict)
    cases: Sequence[str] = ()

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
        """`(L, F, d, h, w)`."""
        return self.features[: self.num_labelled]

    @property
    def unlabelled_features(self) -> torch.Tensor:
        """`(U, F, d, h, w)`."""
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
        """Mask of the labelled voxels to ignore, bool `(L, D, H, W)`; `None` if there are none."""
        # Most datasets have no ignored voxels, and computing the minimum costs less than making the mask.
        if self.labels.numel() == 0 or int(self.labels.min()) > NO_CLASS:
            return None
        return self.labels == NO_CLASS

    @property
    def labelled_voxels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the labelled voxels that are not ignored, for losses that sum over the whole batch.

        Their shapes are `(L, K, D, H, W)` and `(L, D, H, W)` if no voxel is ignored. Otherwise the N remaining voxels
        are flattened to `(1, K, N)` and `(1, N)`; N may be 0.
        """
        if self.ignored is None:
            return self.labelled_logits, self.labels
        counted = ~self.ignored
        return self.labelled_logits.movedim(1, -1)[counted].T[None], self.labels[counted][None]

    @property
    def target_logits(self) -> torch.Tensor:
        """Logits for pseudo-labels, without gradient: the teacher's, or the network's if there is no teacher."""
        return (self.unlabelled_logits if self.teacher_logits is None else self.teacher_logits).detach()


class LossTerm(nn.Module):
    """One weighted part of the training loss. Subclasses implement `forward`.

    Args:
        weight: a number, or a schedule such as `RampUp`.
    """

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, step: int, max_steps: int) -> float:
        """Return the weight at a step (counted from 1) of a run of `max_steps`."""
        return float(self.weight if isinstance(self.weight, int | float) else self.weight.at(step, max_steps))

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the unweighted loss, a scalar; 0 with a zero gradient if the term applies to nothing in the batch."""
        raise NotImplementedError


class WeightedLoss(nn.Module):
    """Weighted sum of named loss terms; the `loss_function` of MONAI's `SupervisedTrainer`.

    A term whose weight is 0 is not computed. Weights depend on `step`, which `LossStep` sets before each iteration.

    Args:
        terms: maps names to `LossTerm` objects; at least one.
        max_steps: length of the run that schedules refer to.
        device: device of the parameters and buffers of the terms.

    Attributes:
        values: unweighted values of the terms in the last call, scalars without gradient.

    Raises:
        ValueError: for an empty mapping, a value that is not a `LossTerm`, or a term called `total`.
    """

    def __init__(self, terms: Mapping[str, LossTerm], max_steps: int, device: str | torch.device = "cpu") -> None:
        super().__init__()
        if not terms:
            raise ValueError("A method needs at least one loss term, e.g. `supervised`.")
        for name, term in terms.items():
            if name == "total":
                raise ValueError("A loss term cannot be called 'total': that is the name of their sum.")
            if not isinstance(term, LossTerm):
                raise ValueError(f"Loss term '{name}' must be a scripts.losses LossTerm, got {type(term).__name__}.")
        self.terms = nn.ModuleDict(dict(terms)).to(device)
        self.max_steps = max_steps
        self.step = 1
        self.values: dict[str, torch.Tensor] = {}

    def forward(self, batch: TrainingBatch, label: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the weighted sum, a scalar.

        Args:
            batch: the output of `FeatureInferer`.
            label: unused. MONAI's trainer passes the labels here, but `batch` already holds them.
        """
        total = batch.logits.new_zeros(())
        values: dict[str, torch.Tensor] = {}
        for name, term in self.terms.items():
            assert isinstance(term, LossTerm)
            weight = term.weight_at(self.step, self.max_steps)
            if weight != 0.0:
                values[name] = term(batch)
                total = total + weight * values[name]
        if not values:
            # All weights can be 0 before the first ramp starts, but the trainer still calls `backward`.
            total = batch.logits[:0].sum()
        self.values = {name: value.detach().to(total.dtype) for name, value in values.items()}
        return total

    @property
    def last(self) -> dict[str, float]:
        """Return the unweighted values of the terms in the last call, in one transfer from the device."""
        if not self.values:
            return {}
        return dict(zip(self.values, torch.stack(list(self.values.values())).tolist(), strict=True))

    def scalars(self, total: torch.Tensor | float) -> dict[str, float]:
        """Return `Loss/total`, and the unweighted value of each term in the last call as `Loss/<name>`."""
        return {
            "Loss/total": float(torch.as_tensor(total).detach()),
            **{f"Loss/{name}": value for name, value in self.last.items()},
        }
