# SPDX-License-Identifier: Apache-2.0
"""The training loss: a weighted list of named terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from scripts.terms.base import StepData, Term


class WeightedTerms(nn.Module):
    """Sum of named terms, each with its weight; the `loss_function` of MONAI's `SupervisedTrainer`.

    A term whose weight is 0 is not computed. Weights follow `step`, which `TermProgress` sets before each iteration.

    Args:
        terms: name to `Term`; at least one.
        max_steps: length of the run that schedules refer to.

    Raises:
        ValueError: for an empty mapping or something in it that is no `Term`.
    """

    def __init__(self, terms: Mapping[str, Term], max_steps: int) -> None:
        super().__init__()
        if not terms:
            raise ValueError("A method needs at least one loss term, e.g. `supervised`.")
        for name, term in terms.items():
            if name == "total":
                raise ValueError("A loss term cannot be called 'total': that is the name of their sum.")
            if not isinstance(term, Term):
                raise ValueError(f"Loss term '{name}' must be a scripts.terms Term, got {type(term).__name__}.")
        self.terms = nn.ModuleDict(dict(terms))
        self.max_steps = max_steps
        self.step = 1
        self.last: dict[str, float] = {}

    def forward(self, prediction: Mapping[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: what `TapInferer` returns: `logits` and `features` of all cases, labelled ones first, and
                `teacher_logits` of the unlabelled ones if there is a teacher; for terms with passes of their own
                `images`, `weak_images` and the attribute `forward_pass`.
            label: `(L, 1, D, H, W)`, the labelled cases' classes.

        Returns:
            The weighted sum, a scalar.
        """
        data = StepData(
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
