# SPDX-License-Identifier: Apache-2.0
"""MONAI's trainer, adapted to batches of labelled and unlabelled cases."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils.enums import CommonKeys as Keys

from scripts.data.streams import LABELLED, UNLABELLED, TwoStreamBatchSampler, TwoStreamLoader
from scripts.distributed.collectives import all_gather_batch, num_ranks
from scripts.errors import UserError
from scripts.losses.base import TrainingBatch, WeightedLoss


class TwoStreamTrainer(SupervisedTrainer):
    """`SupervisedTrainer` with the settings that batches of a `TwoStreamLoader` and `FeatureInferer` need.

    - `prepare_batch` passes the labels and the other volumes of a batch to the inferer.
    - `decollate` is false, because a batch of two streams cannot be split into cases.
    - `optim_set_to_none` is true. Otherwise an unused parameter would have a gradient of 0, but none after resuming.

    MONAI attaches handlers before it sets the trainer's network, loss function, optimiser and inferer. Here handlers
    are attached last, so that `attach` can use all of these.

    With `accumulation_steps` n above 1, a step needs less memory. Part r of n runs the forward and the backward pass of
    the cases r, r + n, ... of each stream, and one optimiser step follows the last part. MONAI's trainer would count
    each part as an iteration; here an iteration is an optimiser step. Its events fire once, after the last backward
    pass, with the whole batch. The loss is the mean over the parts. For terms that average over the same number of
    voxels in every case, it equals the loss of the undivided batch. The memory bank is filled after the losses are
    computed, so they use the prototypes of the previous step.

    Args:
        args: positional arguments of `SupervisedTrainer`.
        train_handlers: handlers to attach, in this order.
        kwargs: keyword arguments of `SupervisedTrainer`; they may override the three settings above.

    Raises:
        UserError: if the parts of a step would differ in size, or if `compile` is set.
    """

    __signature__ = inspect.signature(SupervisedTrainer)  # overrides of its arguments are checked by their names

    def __init__(self, *args: Any, train_handlers: Sequence[Any] = (), **kwargs: Any) -> None:
        if kwargs.get("compile"):
            raise UserError(
                "train::trainer::compile does not work here: torch.compile skips the hooks with which FeatureInferer "
                "reads the feature_layer (docs/performance.md)."
            )
        settings = {"prepare_batch": prepare_two_stream_batch, "decollate": False, "optim_set_to_none": True}
        super().__init__(*args, **{**settings, **kwargs})
        if isinstance(self.data_loader, TwoStreamLoader):
            _check_equal_parts(self.data_loader.batches, self.accumulation_steps)
        for handler in train_handlers:
            handler.attach(self)

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        if self.accumulation_steps == 1:
            return super()._iteration(engine, batchdata)
        image, label, _, volumes = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        parts, losses, values = [], [], []
        for number in range(self.accumulation_steps):
            inputs, kwargs = _part(image, volumes, number, self.accumulation_steps)
            parts.append(self.inferer(inputs, self.network, **kwargs))
            loss = self.loss_function(parts[-1], kwargs["label"]).mean()
            (loss / self.accumulation_steps).backward()
            losses.append(loss.detach())
            if isinstance(self.loss_function, WeightedLoss):
                values.append(self.loss_function.values)
        if values:
            self.loss_function.values = {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}
        output = {
            Keys.IMAGE: image,
            Keys.LABEL: label,
            Keys.PRED: _joined(parts),
            Keys.LOSS: torch.stack(losses).mean(),
        }
        self.state.output = output
        for event in (
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.BACKWARD_COMPLETED,
        ):
            self.fire_event(event)
        self.optimizer.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output


def _check_equal_parts(batches: TwoStreamBatchSampler, parts: int) -> None:
    cases = Counter(stream for stream, *_ in batches.places)
    sizes = {f"batch_{stream}": cases[stream] * num_ranks() for stream in (LABELLED, UNLABELLED)}
    unequal = [f"{size} patches ({key} x processes)" for key, size in sizes.items() if size % parts]
    if unequal:
        raise UserError(
            f"accumulation_steps is {parts}, but {parts} equal parts cannot be made of {' and '.join(unequal)}: change "
            "--accumulation_steps, --batch_labelled or --batch_unlabelled."
        )


def _part(
    image: torch.Tensor, volumes: dict[str, Any], number: int, of: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Take the cases `number`, `number + of`, ... of each stream from the result of `prepare_two_stream_batch`.

    With this choice `CopyPasteTerm` pairs the same cases as in the undivided batch.
    """
    image, num_labelled = image.as_subclass(torch.Tensor), len(volumes["label"])
    inputs = torch.cat([stream[number::of] for stream in (image[:num_labelled], image[num_labelled:])])
    own = {
        key: volumes[key].as_subclass(torch.Tensor)[number::of]
        for key in ("label", "weak", "stored")
        if volumes[key] is not None
    }
    return inputs, {**volumes, **own}


def _joined(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    """Join the parts to one batch, in the original order of cases and without gradients or deep features."""

    def whole(name: str) -> Any:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.stack(tensors, dim=1).flatten(0, 1).detach()

    def both(name: str) -> torch.Tensor:
        return torch.cat([whole(f"labelled_{name}"), whole(f"unlabelled_{name}")])

    return replace(
        parts[0],
        logits=both("logits"),
        features=both("features"),
        images=both("images"),
        labels=whole("labels"),
        weak_images=whole("weak_images"),
        teacher_logits=whole("teacher_logits"),
        deep_features={},
    )


def prepare_two_stream_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
    """`prepare_batch` for MONAI's `SupervisedTrainer`: images, labels, and the keyword arguments of `FeatureInferer`.

    With several ranks, each receives the cases of all ranks, labelled cases first, in the order of a single process.

    Args:
        batch: the result of `collate`; all ranks must have the same number of cases of each stream.
        device: the target device of the tensors.
        non_blocking: see `torch.Tensor.to`.
        kwargs: further arguments of `torch.Tensor.to`, for the images only.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    label = batch["label"].to(device, non_blocking=non_blocking)
    weak, stored = batch.get("weak"), batch.get("stored")
    if weak is not None:
        weak = all_gather_batch(weak.to(device, non_blocking=non_blocking, **kwargs))
    if stored is not None:
        stored = all_gather_batch(stored.to(device, non_blocking=non_blocking))
    streams = image.split([len(label), len(image) - len(label)])
    if num_ranks() > 1:  # steps before `unlabelled_start` have no unlabelled stream
        image = torch.cat([all_gather_batch(stream) for stream in streams if len(stream) > 0])
    label = all_gather_batch(label)
    return image, label, (), {"label": label, "weak": weak, "stored": stored, "cases": batch.get("case", ())}
