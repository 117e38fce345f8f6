# SPDX-License-Identifier: Apache-2.0
"""All handlers of training and validation, attached in the required order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.data.streams import LABELLED, UNLABELLED, StreamPosition, TwoStreamLoader
from scripts.data.training_cases import TrainingCases
from scripts.distributed.collectives import is_rank0, num_ranks
from scripts.distributed.group import RankSynchroniser
from scripts.evaluation.overlay import OverlayPictures
from scripts.losses.base import WeightedLoss
from scripts.losses.schedules import warmed_rate
from scripts.training.checkpoint import StopOnSignal, TrainingCheckpoint
from scripts.training.guard import GradientGuard
from scripts.training.memory_updater import MemoryBankUpdater
from scripts.training.model_saver import BestModelSaver, FinalModelSaver
from scripts.training.optimizers import RateOnCurve
from scripts.training.run_record import RunRecord
from scripts.training.step_handlers import (
    BatchAsItem,
    CourseCurves,
    LossStep,
    MemoryEmbeddings,
    RunProgressBar,
    StepSeeder,
    StopAtStep,
    Validation,
)
from scripts.training.teacher import Teacher, TeacherUpdater

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrainingHandlers:
    """All handlers of a training run and of its validations, behind one entry of `train::handlers`.

    ignite calls the handlers of one event in the order in which they were attached. These orders matter:

    - A checkpoint is written after the teacher and the learning rate are updated, so that a resumed run neither repeats
      nor misses an update. It is written before a validation, so that nothing is lost if the validation fails; a
      resumed run repeats the validation.
    - Gradients are synchronised between ranks before the guard checks them, so that all ranks decide alike.
    - The guard checks before the teacher is updated, because the teacher skips a step that was undone.
    - The run's record comes after the checkpoint, which restores the step, and before the models, which contain it.
    - A signal ends the run after the checkpoint is written. `StopOnSignal` is the first handler of exceptions; it
      raises an exception again, and ignite then calls no further handler.
    - The stop at `max_steps` comes last.

    Network, loss, optimiser, loader and inferer are those of the trainer, a `TwoStreamTrainer`.

    Args:
        teacher: averaged copy of the network; it is validated, and the final model is the teacher's.
        learning_rate_curve: factor on the learning rate as a function of the number of completed steps.
        extra_optimizer: a second optimiser that the method needs, or `None`.
        guard: undoes steps that are not finite.
        method_handlers: handlers that the method needs, such as `MemoryBankUpdater`; they are attached first. An entry
            is `None` if the configuration disables it.
        validator: evaluator of the validation cases; it does not run if there are no such cases.
        val_interval: steps between validations.
        output_dir: folder of TensorBoard's files and of a copy of the run's record, for the report; its subfolder
            `overlays` gets the pictures of validation cases.
        ckpt_dir: folder of `model.pt`, `model_best.pt`, checkpoints, and the run's record, `run.json`.
        save_interval: steps between checkpoints.
        keep_checkpoints: number of checkpoints to keep.
        resume: whether to continue from the newest checkpoint.
        max_steps: steps of the whole run.
        dataset: the dataset block.
        cases: the cases of its datalist.
        initial_weights: file with the network's initial weights, or `None`.
        settings: what `scripts.cli.settings.run_settings` found on the command line, for the record.
        warmup: number of steps over which the learning rate rises linearly to its curve, in addition to any warm-up
            that the curve has. `None` selects a tenth of the run if there are `initial_weights`, so that large steps do
            not destroy them, and 0 otherwise.
        pictures: number of validation cases that are drawn.
        crossval_dir: folder of an earlier cross-validation of the dataset; `None`: below `output_dir`.

    Attributes:
        handlers: the trainer's handlers, once they are attached.
        best_model: saver of the best model; its best value is part of a checkpoint.
    """

    def __init__(
        self,
        *,
        teacher: Teacher,
        learning_rate_curve: Callable[[int], float],
        extra_optimizer: Optimizer | None,
        guard: GradientGuard,
        method_handlers: Sequence[Any],
        validator: SupervisedEvaluator,
        val_interval: int,
        output_dir: str | Path,
        ckpt_dir: str | Path,
        save_interval: int,
        keep_checkpoints: int,
        resume: bool | str,
        max_steps: int,
        dataset: DatasetSpec,
        cases: CaseLists,
        initial_weights: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,  # optional, because MONAI drops arguments that are None
        warmup: int | None = None,
        pictures: int = 4,
        crossval_dir: str | Path | None = None,
    ) -> None:
        self.teacher, self.extra_optimizer = teacher, extra_optimizer
        if warmup is None:
            warmup = 0 if initial_weights is None else max_steps // 10
        self.learning_rate_curve = warmed_rate(learning_rate_curve, warmup)
        self.guard, self.method_handlers = guard, method_handlers
        self.validator, self.val_interval = validator, val_interval
        self.output_dir, self.ckpt_dir = Path(output_dir), Path(ckpt_dir)
        self.crossval_dir = Path(crossval_dir or self.output_dir / "crossval" / dataset.name)
        self.save_interval, self.keep_checkpoints, self.resume = save_interval, keep_checkpoints, resume
        self.max_steps, self.dataset, self.pictures = max_steps, dataset, pictures
        self.run_record = RunRecord(
            self.ckpt_dir / "run.json", dataset, cases, settings, initial_weights, self.output_dir / "run.json"
        )
        self.best_model = BestModelSaver(teacher.module, self.ckpt_dir / "model_best.pt", dataset, self.run_record)
        self.handlers: list[Any] = []

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach all handlers to the trainer and to its validator, in the required order."""
        loss = engine.loss_function
        assert isinstance(loss, WeightedLoss)
        writer = summary_writer(self.output_dir)
        self.validator.add_event_handler(  # before the saver of the best model, which stores the record in its file
            Events.COMPLETED, lambda validator: self.run_record.note_validation(validator, engine.state.iteration)
        )
        for handler in self._of_validation(engine, writer):
            handler.attach(self.validator)
        self.handlers = self._of_training(engine, loss, writer)
        for handler in self.handlers:
            handler.attach(engine)

    def _of_validation(self, engine: SupervisedTrainer, writer: SummaryWriter | None) -> list[Any]:
        if writer is None:
            return [self.best_model]
        return [
            self.best_model,
            TensorBoardStatsHandler(
                writer, iteration_log=False, global_epoch_transform=lambda _: engine.state.iteration
            ),
            OverlayPictures(
                self.output_dir / "overlays", writer, limit=self.pictures, step=lambda: engine.state.iteration
            ),
        ]

    def _of_training(self, engine: SupervisedTrainer, loss: WeightedLoss, writer: SummaryWriter | None) -> list[Any]:
        network, loader, cases = engine.network, engine.data_loader, self.validator.data_loader
        assert isinstance(loader, TwoStreamLoader) and isinstance(cases, DataLoader)
        scheduler = RateOnCurve(engine.optimizer, self.learning_rate_curve)
        checkpoint = self._checkpoint(engine, loss, loader, scheduler)
        crossval = self.crossval_dir / "crossval.json"
        datasets = loader.dataset.datasets
        self.run_record.training_cases = TrainingCases(datasets[LABELLED], datasets[UNLABELLED], self.dataset, crossval)
        return [
            *(handler for handler in self.method_handlers if handler is not None),
            StreamPosition(loader),
            StepSeeder(loader.batches.seed),
            LossStep(loss),
            RankSynchroniser(network, loss),
            self.guard,
            TeacherUpdater(self.teacher, network, self.guard),
            BatchAsItem(),
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            *([] if writer is None else self._curves(engine, loss, writer)),
            checkpoint,
            self.run_record,
            *([Validation(self.validator, self.val_interval)] if len(cases) > 0 else []),
            StopOnSignal(checkpoint),
            *([RunProgressBar(loss, self.max_steps)] if is_rank0() else []),
            FinalModelSaver(
                self.teacher.module, self.ckpt_dir / "model.pt", self.max_steps, self.dataset, self.run_record
            ),
            StopAtStep(self.max_steps),
        ]

    def _curves(self, engine: SupervisedTrainer, loss: WeightedLoss, writer: SummaryWriter) -> list[Any]:
        updaters = [handler for handler in self.method_handlers if isinstance(handler, MemoryBankUpdater)]
        return [
            _loss_curves(writer, loss),
            CourseCurves(writer, loss, engine.optimizer, max(1, self.max_steps // 200)),
            *(MemoryEmbeddings(writer, updater) for updater in updaters),
        ]

    def _checkpoint(
        self, engine: SupervisedTrainer, loss: WeightedLoss, loader: TwoStreamLoader, scheduler: RateOnCurve
    ) -> TrainingCheckpoint:
        batches = loader.batches
        return TrainingCheckpoint(
            {
                "network": engine.network,
                "teacher": self.teacher,
                "loss": loss,
                "optimizer": engine.optimizer,
                "extra_optimizer": self.extra_optimizer,
                "lr_scheduler": scheduler,  # after the optimiser, because it sets the optimiser's rate
                "best": self.best_model,
                "guard": self.guard,
            },
            self.ckpt_dir,
            self.save_interval,
            self.max_steps,
            self.resume,
            self.keep_checkpoints,
            outdated=[self.best_model.path],
            settings={
                **self.dataset.fixed_settings(),
                **{stream: len(cases) for stream, cases in batches.kept.items()},
                "terms": list(loss.terms),
                "feature_layer": engine.inferer.layer,
                "teacher_decay": self.teacher.decay,
                "learning_rate": engine.optimizer.param_groups[0]["initial_lr"],
                "batch_labelled": batches.batch_labelled * num_ranks(),
                "batch_unlabelled": batches.batch_unlabelled * num_ranks(),
                "unlabelled_start": loader.unlabelled_start,
                "accumulation_steps": engine.accumulation_steps,
                "seed": batches.seed,
            },
            rank_dependent=["batch_labelled", "batch_unlabelled", "learning_rate"],
        )


def summary_writer(log_dir: str | Path) -> SummaryWriter | None:
    """Return TensorBoard's writer on the first rank, `None` on the others.

    Args:
        log_dir: folder of TensorBoard's files.
    """
    if not is_rank0():
        return None
    from torch.utils.tensorboard import SummaryWriter  # not at the top: importing it takes a second

    return SummaryWriter(log_dir=str(log_dir))


def _loss_curves(writer: SummaryWriter, loss: WeightedLoss) -> TensorBoardStatsHandler:
    return TensorBoardStatsHandler(
        writer, iteration_log=True, epoch_log=False, output_transform=lambda output: loss.scalars(output[0]["loss"])
    )
