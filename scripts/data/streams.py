# SPDX-License-Identifier: Apache-2.0
"""Batches of two streams, labelled and unlabelled, with a fixed number of cases of each.

The choice of a case and its augmentation are a pure function of (seed, stream, iteration, batch_index). A resumed run
therefore needs no sampler state, and the number of loader workers does not affect the result. Each rank loads its own
part of one large batch.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from scripts.data.spec import with_name
from scripts.distributed.collectives import num_local_ranks, num_ranks, rank
from scripts.distributed.threads import available_cores, one_thread
from scripts.errors import UserError
from scripts.seeding import derive_seed, draw_index

logger = logging.getLogger("loader")


def heed_loader_alone(worker: int = 0) -> None:
    """Make a loader worker react to SIGTERM only from its parent; a `worker_init_fn` for PyTorch's `DataLoader`.

    Schedulers and `torchrun` send SIGTERM to every process of a group. If a worker ended, the step that the main
    process is completing before it saves would fail. PyTorch's workers end by themselves when the main process is gone.

    On systems where the sender of a signal cannot be determined (macOS, Windows), workers keep PyTorch's behaviour.

    Args:
        worker: number of the worker; unused.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that are created later inherit this
    threading.Thread(target=_end_when_told_by_parent, daemon=True).start()


def _end_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


SampleKey = tuple[str, int, int]
"""(stream, case index, seed of its augmentation)."""

LABELLED, UNLABELLED = "labelled", "unlabelled"


class TwoStreamDataset(Dataset):
    """Look up cases of two datasets by their keys, and seed their random transforms with the seed in the key.

    Args:
        labelled: MONAI dataset with a `transform`; its items hold `image` and `label`.
        unlabelled: the same for the unlabelled cases; may be empty.
    """

    def __init__(self, labelled: Any, unlabelled: Any) -> None:
        self.datasets = {LABELLED: labelled, UNLABELLED: unlabelled}

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Return the item of the key, augmented with the seed in the key."""
        stream, index, seed = key
        dataset = self.datasets[stream]
        dataset.transform.set_random_state(seed)
        with one_thread():
            item = dataset[index]
        # Cropping transforms return a list of samples, here with a single one.
        return item[0] if isinstance(item, list) else item


class TwoStreamBatchSampler(Sampler[list[SampleKey]]):
    """Endless batches of keys: labelled cases first, then unlabelled ones.

    Each stream goes through all its cases in a new order on every pass. Iteration begins at `start`, the number of
    batches used by earlier parts of the run. Batches before `unlabelled_start` hold labelled cases only, because steps
    in which no loss term uses unlabelled cases cost half as much without them.

    With several ranks, each draws its share of the batch that one process with the summed batch sizes would draw. A
    pass over the batches of all ranks therefore holds every case once, even after resuming with a different number of
    ranks.

    Args:
        labelled_size: number of labelled cases, at least 1.
        unlabelled_size: number of unlabelled cases; 0 makes every batch labelled only.
        batch_labelled: labelled cases per batch of this rank, at least 1.
        batch_unlabelled: unlabelled cases per batch of this rank, at least 0.
        seed: the run's seed.
        unlabelled_start: first iteration, counted from 0, with unlabelled cases.

    Raises:
        UserError: for a number out of range.
    """

    def __init__(
        self,
        labelled_size: int,
        unlabelled_size: int,
        batch_labelled: int,
        batch_unlabelled: int,
        seed: int,
        unlabelled_start: int = 0,
    ) -> None:
        if labelled_size < 1:
            raise UserError("There is no labelled case to train on: label at least one and set --labelled_cases.")
        if batch_labelled < 1:
            raise UserError(f"batch_labelled must be at least 1, got {batch_labelled}.")
        if batch_unlabelled < 0:
            raise UserError(f"batch_unlabelled must be at least 0, got {batch_unlabelled}.")
        self.kept: dict[str, Sequence[int]] = {LABELLED: range(labelled_size), UNLABELLED: range(unlabelled_size)}
        self.places = [(LABELLED, *batch_index) for batch_index in _places_of_rank(batch_labelled)]
        if unlabelled_size > 0:
            self.places += [(UNLABELLED, *batch_index) for batch_index in _places_of_rank(batch_unlabelled)]
        self.batch_labelled, self.batch_unlabelled = batch_labelled, batch_unlabelled
        self.seed = seed
        self.start = 0
        self.unlabelled_start = unlabelled_start
        self.lap_length = -(-labelled_size // (batch_labelled * num_ranks()))

    def __len__(self) -> int:
        """Number of batches until every labelled case was drawn once; the iterator itself does not end."""
        return self.lap_length

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield batches, beginning at `start`."""
        return (self.batch(iteration) for iteration in itertools.count(self.start))

    def batch(self, iteration: int) -> list[SampleKey]:
        """Return the keys of one iteration, counted from 0."""
        return [
            (
                stream,
                self.kept[stream][
                    draw_index(self.seed, stream, iteration * per_batch + batch_index, len(self.kept[stream]))
                ],
                derive_seed(self.seed, stream, "augment", iteration, batch_index),
            )
            for stream, batch_index, per_batch in self.places
            if stream == LABELLED or iteration >= self.unlabelled_start
        ]

    def select_unlabelled(self, kept: Sequence[int]) -> None:
        """Draw only the unlabelled cases with these indices (at least one) from now on."""
        self.kept[UNLABELLED] = kept


def _places_of_rank(per_rank: int) -> list[tuple[int, int]]:
    """Return (index in the whole batch, size of that batch) of this rank's cases, ordered as by `all_gather_batch`."""
    total = per_rank * num_ranks()
    return [(batch_index, total) for batch_index in range(rank(), total, num_ranks())]


def _case_of(item: Mapping[str, Any]) -> str:
    return with_name(item)["case"]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack a batch as plain tensors, labelled cases first.

    Returns:
        `image` `(L + U, C, D, H, W)`, `label` `(L, 1, D, H, W)` and `case` (names). If the unlabelled items have `weak`
        (the image before intensity augmentation) or `stored` (pseudo-labels), also these, `(U, C, D, H, W)`.
    """
    for key in ("image", "label", "weak", "stored"):
        _check_shapes(key, [item for item in items if key in item])
    batch: dict[str, Any] = {
        "image": torch.stack([_plain(item["image"]) for item in items]),
        "label": torch.stack([_plain(item["label"]) for item in items if "label" in item]),
        "case": [_case_of(item) for item in items],
    }
    for key in ("weak", "stored"):
        found = [_plain(item[key]) for item in items if key in item and "label" not in item]
        if found:
            batch[key] = torch.stack(found)
    return batch if get_worker_info() is None else {key: _sendable(value) for key, value in batch.items()}


def _sendable(value: Any) -> Any:
    """Move a tensor to shared memory; if that is full, return an array, which is sent through a pipe.

    By default torch moves tensors to shared memory in a thread of the queue. An error there is only printed, and the
    batch is lost.
    """
    if not isinstance(value, torch.Tensor):
        return value
    try:
        return value.share_memory_()
    except RuntimeError:
        _warn_of_full_shared_memory()
        return value.numpy()


@lru_cache
def _warn_of_full_shared_memory() -> None:
    logger.warning(
        "The shared memory (/dev/shm) has no room for a batch, which is sent through a pipe: slower, with the same "
        "result. Give the container more (docker run --shm-size 2g), or lower --num_workers."
    )


def _check_shapes(key: str, items: Sequence[dict[str, Any]]) -> None:
    for item in items[1:]:
        if item[key].shape != items[0][key].shape:
            first, other = (f"{tuple(i[key].shape)} ({_case_of(i)})" for i in (items[0], item))
            raise UserError(
                f"The {key}s of a batch differ in shape, {first} and {other}: every case needs the same channels, and "
                "the transforms must end with patches of roi_size."
            )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


MOST_WORKERS = 4
"""Maximum number of loader processes; more would fill the memory with patches that wait for the network."""


def loader_workers(num_workers: int | str) -> int:
    """Number of loader processes.

    Args:
        num_workers: a number, or `auto` for one less than the number of cores per rank, but at most `MOST_WORKERS`.
    """
    if num_workers != "auto":
        return int(num_workers)
    return max(0, min(MOST_WORKERS, available_cores() // num_local_ranks() - 1))


LONGEST_WAIT = 1200
"""Seconds without a batch after which loader processes count as stuck; the first batch may need uncached volumes."""


class TwoStreamLoader(DataLoader):
    """A loader of endless two-stream batches.

    Args:
        labelled: MONAI dataset of the labelled cases.
        unlabelled: MONAI dataset of the unlabelled cases; may be empty.
        batch_labelled: labelled cases per batch of this rank.
        batch_unlabelled: unlabelled cases per batch of this rank.
        seed: the run's seed.
        num_workers: number of loader processes, or `auto`, see `loader_workers`; it does not affect results.
        unlabelled_start: fraction of the run before which batches hold labelled cases only.
        max_steps: length of the run.

    Attributes:
        batches: the batch sampler.
    """

    dataset: TwoStreamDataset

    def __init__(
        self,
        labelled: Any,
        unlabelled: Any,
        batch_labelled: int,
        batch_unlabelled: int,
        seed: int,
        num_workers: int | str = 0,
        unlabelled_start: float = 0.0,
        max_steps: int = 0,
    ) -> None:
        self.unlabelled_start = unlabelled_start
        first, workers = round(unlabelled_start * max_steps), loader_workers(num_workers)
        self.batches = TwoStreamBatchSampler(
            len(labelled), len(unlabelled), batch_labelled, batch_unlabelled, seed, first
        )
        super().__init__(
            TwoStreamDataset(labelled, unlabelled),
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=heed_loader_alone,
            timeout=LONGEST_WAIT if workers > 0 else 0,
        )

    def __iter__(self) -> Any:
        """Yield batches made by `collate`, beginning at the sampler's `start`."""
        for batch in super().__iter__():
            yield {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in batch.items()}


class StreamPosition:
    """Start the loader's streams at the current iteration, which a restored checkpoint may have set.

    Args:
        loader: the loader of the run.
    """

    def __init__(self, loader: TwoStreamLoader) -> None:
        self.sampler = loader.batches

    def attach(self, engine: Engine) -> None:
        """Set the position at the start of each epoch, because the engine makes a new iterator after that event."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the first batch to the number of completed iterations."""
        self.sampler.start = engine.state.iteration
