# SPDX-License-Identifier: Apache-2.0
"""Small handlers that run around each training step: seeds, schedules, validation, progress bar, end of the run."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch.optim import Optimizer

from scripts.distributed.collectives import num_ranks
from scripts.errors import first_line, is_out_of_memory
from scripts.losses.base import LossTerm, TrainingBatch, WeightedLoss
from scripts.progress import EngineProgress, open_bar
from scripts.prototypes.memory import PrototypeMemory
from scripts.seeding import derive_seed, seed_generators
from scripts.training.memory_updater import MemoryBankUpdater

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("Validation")

CONFIDENT = 0.95
"""Minimum probability of the most probable class for a voxel to count as confident in a curve."""

PICTURED_VOXELS = 50
"""Number of voxels of each class and kind that are plotted with the prototypes."""


def last_step(engine: Engine, max_steps: int) -> int:
    """Return the step at which a run is complete: `max_steps`, or earlier if the trainer has fewer epochs.

    MONAI Label and federated clients set only the trainer's `max_epochs`, and not `max_steps`.
    """
    epochs, length = engine.state.max_epochs, engine.state.epoch_length
    return max_steps if epochs is None or length is None else min(max_steps, epochs * length)


class StepSeeder:
    """Seed all generators from (seed, iteration) before each step, so that a resumed run repeats dropout and sampling.

    All ranks get the same seed, because they compute the same loss and memory and must draw the same numbers. Only
    passes of the network on a rank's share of the cases use a different generator (`collectives.fork_rng_per_rank`).

    Args:
        seed: the run's seed, at least 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Seed at the start of each iteration of `engine`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for the engine's current iteration."""
        seed_generators(derive_seed(self.seed, "step", engine.state.iteration, 0))


class LossStep:
    """Set the current step in `WeightedLoss`, so that its schedules follow the run.

    Args:
        loss: the loss whose `step` is set.
    """

    def __init__(self, loss: WeightedLoss) -> None:
        self.loss = loss

    def attach(self, engine: Engine) -> None:
        """Set the step at the start of each iteration of `engine`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the step, counted from 1."""
        self.loss.step = engine.state.iteration


class Validation:
    """Validate after every `interval` steps, once the step's checkpoint is written.

    If a validation fails or is killed, no step is therefore lost. A run that is resumed at a step with a validation
    repeats it, because the checkpoint does not contain its result. If a single process runs out of memory, a warning is
    logged and training continues. Several processes wait for each other's results, so in that case the run ends.

    Attach it after `TrainingCheckpoint`.

    Args:
        validator: evaluator of the validation cases.
        interval: steps between validations, at least 1.
    """

    def __init__(self, validator: Engine, interval: int) -> None:
        self.validator, self.interval = validator, interval

    def attach(self, engine: Engine) -> None:
        """Validate when a resumed run starts, and after every `interval` iterations."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate if it is due."""
        step = engine.state.iteration
        if step == 0 or step % self.interval != 0:
            return
        try:
            self.validator.run()
        except (RuntimeError, MemoryError) as error:
            if num_ranks() > 1 or not is_out_of_memory(error):
                raise
            # Without this, ignite would continue the failed validation instead of starting the next one.
            self.validator._internal_run_generator = None
            logger.warning(
                f"The validation after step {step} ran out of memory ({first_line(error)}), so there is no result; "
                "training goes on. Lower --validate::inferer::sw_batch_size, or raise --val_interval above --max_steps."
            )


class BatchAsItem:
    """Wrap a step's output in a list of one item, the whole batch, because MONAI's handlers expect decollated items.

    A batch of two streams cannot be decollated, because it has more images than labels. But MONAI's MLflow tracking and
    other handlers read the loss with `from_engine(["loss"], first=True)`, which needs a list.
    """

    def attach(self, engine: Engine) -> None:
        """Wrap the output when the model update is complete, which is when MONAI decollates."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Wrap the output."""
        engine.state.output = [engine.state.output]


class CourseCurves:
    """Write the training curves of a report to TensorBoard, except for losses and validations.

    - `Weight/<term>`: weight of a loss term.
    - `Rate/learning_rate`.
    - `Time/step`: mean seconds per step since the last point, including validations and the writing of checkpoints.
    - `Memory/<class>`: number of prototypes.
    - `Confident/unlabelled`: share of voxels in unlabelled patches whose most probable class has a probability of at
      least `CONFIDENT`.

    Args:
        writer: TensorBoard's writer.
        loss: the loss function; if there is a memory, one of its terms holds it.
        optimizer: the main optimiser.
        interval: steps between two points, at least 1.
    """

    def __init__(self, writer: SummaryWriter, loss: WeightedLoss, optimizer: Optimizer, interval: int) -> None:
        self.writer, self.loss, self.optimizer, self.interval = writer, loss, optimizer, interval
        self.memories = [module for module in loss.modules() if isinstance(module, PrototypeMemory)][:1]
        self.last = (0, 0.0)

    def attach(self, engine: Engine) -> None:
        """Record the time when `engine` starts, and write after every `interval` iterations."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self)

    def start(self, engine: Engine) -> None:
        """Record step and time."""
        self.last = engine.state.iteration, time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Write a point of each curve."""
        step, now = engine.state.iteration, time.perf_counter()
        values = {"Rate/learning_rate": self.optimizer.param_groups[0]["lr"]}
        if step > self.last[0]:
            values["Time/step"] = (now - self.last[1]) / (step - self.last[0])
        for name, term in self.loss.terms.items():
            assert isinstance(term, LossTerm)
            values[f"Weight/{name}"] = term.weight_at(self.loss.step, self.loss.max_steps)
        for memory in self.memories:
            values |= {f"Memory/{c}": count for c, count in memory.summary().items()}
        batch: TrainingBatch = engine.state.output[0][Keys.PRED]
        if batch.num_unlabelled > 0:
            highest = batch.target_logits.softmax(dim=1).amax(dim=1)
            values["Confident/unlabelled"] = (highest >= CONFIDENT).float().mean().item()
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.last = step, now


class MemoryEmbeddings:
    """Write prototypes and voxels of the last batch for TensorBoard's projector when the run ends.

    TensorBoard reads `<step>/memory/tensors.tsv`, with one embedding per line, and `metadata.tsv` beside it, with the
    kind (prototype, labelled or unlabelled voxel) and the class. The report shows them in two dimensions.

    Args:
        writer: TensorBoard's writer.
        updater: the handler that writes the memory.
    """

    def __init__(self, writer: SummaryWriter, updater: MemoryBankUpdater) -> None:
        self.writer, self.updater = writer, updater

    def attach(self, engine: Engine) -> None:
        """Write when `engine` ends."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the embeddings, if there are any."""
        memory = self.updater.memory
        kinds = {"prototype": {c: memory[c] for c in range(memory.num_classes) if len(memory[c])}}
        if engine.state.output:  # none if a finished run is resumed
            kinds |= self.updater.sample(engine.state.output[0][Keys.PRED], PICTURED_VOXELS)
        rows = [[kind, str(c)] for kind, groups in kinds.items() for c, group in groups.items() for _ in group]
        if rows:
            # Remove files of an earlier run at the same step; otherwise `add_embedding` would print a warning.
            shutil.rmtree(Path(self.writer.log_dir) / f"{engine.state.iteration:05}/memory", ignore_errors=True)
            points = torch.cat([group.float().cpu() for groups in kinds.values() for group in groups.values()])
            self.writer.add_embedding(points, rows, None, engine.state.iteration, "memory", ["kind", "class"])


class StopAtStep:
    """End the run after `max_steps` iterations, even in the middle of an epoch; attach it last.

    Args:
        max_steps: number of iterations, at least 1.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def attach(self, engine: Engine) -> None:
        """Check at the start (a finished run may have been resumed) and after each iteration."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Terminate if the step is reached."""
        if engine.state.iteration >= self.max_steps:
            engine.terminate()


class RunProgressBar(EngineProgress):
    """Show completed steps, remaining time, and the terms of the loss.

    ignite's `ProgressBar` shows one epoch at a time; this one shows the whole run.

    Args:
        loss: the loss function, for the values of its terms.
        max_steps: length of the run.
    """

    def __init__(self, loss: WeightedLoss, max_steps: int) -> None:
        self.loss, self.max_steps = loss, max_steps

    def move(self, engine: Engine) -> None:
        """Show the completed step; the first step opens the bar."""
        step = engine.state.iteration
        if self.bar is None:
            self.bar = open_bar(total=self.max_steps, initial=step - 1, unit="step", mininterval=0.5, desc="training")
        parts = {
            name.removeprefix("Loss/"): value
            for name, value in self.loss.scalars(engine.state.output[0][Keys.LOSS]).items()
        }
        self.bar.set_postfix({name: f"{value:.2f}" for name, value in parts.items()}, refresh=False)
        self.bar.update(step - self.bar.n)
