# SPDX-License-Identifier: Apache-2.0
"""MONAI's trainer for batches of two streams."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer

from scripts.distributed.collectives import all_gather_batch, num_ranks


class TwoStreamTrainer(SupervisedTrainer):
    """`SupervisedTrainer` with the settings that batches of a `TwoStreamLoader` and `FeatureInferer` need.

    - `prepare_batch` hands the labels and further volumes of a batch to the inferer;
    - `decollate` is false, as a batch of two streams cannot be split into cases;
    - `optim_set_to_none` is true: otherwise an unused parameter has a gradient of 0, but none after a resume.

    MONAI attaches handlers before it sets the trainer's network, loss function, optimiser and inferer. Here they are
    attached last, so that `attach` finds all of these.

    Args:
        args: of `SupervisedTrainer`.
        train_handlers: handlers to attach, in this order.
        kwargs: of `SupervisedTrainer`; the three settings above may be among them.
    """

    __signature__ = inspect.signature(SupervisedTrainer)  # overrides of its arguments are checked by their names

    def __init__(self, *args: Any, train_handlers: Sequence[Any] = (), **kwargs: Any) -> None:
        settings = {"prepare_batch": prepare_two_stream_batch, "decollate": False, "optim_set_to_none": True}
        super().__init__(*args, **{**settings, **kwargs})
        for handler in train_handlers:
            handler.attach(self)


def prepare_two_stream_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
    """`prepare_batch` of MONAI's `SupervisedTrainer`: images, labels, and what `FeatureInferer` wants by name.

    Of several ranks each receives the cases of all of them, labelled ones first, in the order of one process's batch.

    Args:
        batch: what `collate` made, on every rank with as many cases of each stream.
        device: where tensors go.
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
    if num_ranks() > 1:  # a step before `unlabelled_start` has no second stream
        image = torch.cat([all_gather_batch(stream) for stream in streams if len(stream) > 0])
    label = all_gather_batch(label)
    return image, label, (), {"label": label, "weak": weak, "stored": stored, "cases": batch.get("case", ())}
