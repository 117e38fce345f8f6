# SPDX-License-Identifier: Apache-2.0
"""Everything that acts during training and validation, attached in the order that it must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from scripts.data.cases import CaseLists
from scripts.data.spec import DatasetSpec
from scripts.data.streams import StreamPosition, TwoStreamLoader
from scripts.distributed.collectives import is_rank0, num_ranks
from scripts.distributed.group import RankSynchroniser
from scripts.evaluation.overlay import OverlayPictures
from scripts.losses.base import WeightedLoss
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.guard import GradientGuard
from scripts.training.interruption import StopOnSignal
from scripts.training.model_saver import BestModelSaver, FinalModelSaver
from scripts.training.step_handlers import BatchAsItem, LossStep, RunProgressBar, StepSeeder, StopAtStep
from scripts.training.teacher import TeacherUpdater

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter


class TrainingHandlers:
    """All handlers of a training run behind one entry of `train::handlers`.

    ignite calls the handlers of one event in the order in which they were attached. These orders matter:

    - a checkpoint is written after everything else of its step is done: validation, the teacher's update and the
      learning rate's, so that a resumed run repeats none of it and misses none of it;
    - gradients are synchronised between ranks before the guard judges them, so that all ranks judge alike;
    - the guard judges before the teacher moves, which does not follow a step that was undone;
    - a signal ends the run after the checkpoint is written, and `StopOnSignal` is the first to listen for exceptions,
      because it raises them again, and ignite then calls no further listener; the stop at `max_steps` comes last.

    Args:
        network: what is trained.
        teacher: its averaged copy (`scripts.training.teacher.ema_teacher`); the final model is the teacher's.
        loss: the loss function.
        optimizer: of the trainer.
        extra_optimizer: an optimiser of the method's own, or `None`.
        lr_scheduler: stepped after each iteration.
        loader: of both streams.
        guard: undoes steps that are not finite.
        method_handlers: handlers that the method needs, such as `MemoryBankUpdater`; they are attached first.
        validator: evaluator of the validation cases, or `None` without such cases.
        val_interval: steps between validations.
        best_model: saver of the best model; its best value is part of a checkpoint.
        ckpt_dir: folder of `model.pt` and of checkpoints.
        save_interval: steps between checkpoints.
        keep_checkpoints: number of checkpoints that are kept.
        resume: whether to continue from the newest checkpoint.
        max_steps: steps of the whole run.
        dataset: the dataset block.
        cases: of its datalist.
        settings: further values that a resumed run must share, by name.
        preprocessing_record: saved with the weights (`scripts.data.preprocessing_record`).
        summary_writer: of TensorBoard; `None` writes no curves.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        teacher: AveragedModel,
        loss: WeightedLoss,
        optimizer: Optimizer,
        extra_optimizer: Optimizer | None,
        lr_scheduler: LRScheduler,
        loader: TwoStreamLoader,
        guard: GradientGuard,
        method_handlers: Sequence[Any],
        validator: SupervisedEvaluator | None,
        val_interval: int,
        best_model: BestModelSaver,
        ckpt_dir: str | Path,
        save_interval: int,
        keep_checkpoints: int,
        resume: bool | str,
        max_steps: int,
        dataset: DatasetSpec,
        cases: CaseLists,
        settings: Mapping[str, Any],
        preprocessing_record: Mapping[str, Any],
        summary_writer: SummaryWriter | None,
    ) -> None:
        batches = loader.batches
        checkpoint = TrainingCheckpoint(
            {
                "network": network,
                "teacher": teacher,
                "loss": loss,
                "optimizer": optimizer,
                "extra_optimizer": extra_optimizer,
                "lr_scheduler": lr_scheduler,
                "best": best_model,
                "guard": guard,
            },
            ckpt_dir,
            save_interval,
            max_steps,
            resume,
            keep_checkpoints,
            outdated=[best_model.path],
            settings={
                **dataset.fixed_settings(),
                "labelled": len(cases.labelled),
                "unlabelled": len(cases.unlabelled),
                "terms": list(loss.terms),
                "learning_rate": optimizer.param_groups[0]["initial_lr"],
                "batch_labelled": batches.batch_labelled * num_ranks(),
                "batch_unlabelled": batches.batch_unlabelled * num_ranks(),
                "seed": batches.seed,
                **settings,
            },
            rank_dependent=["batch_labelled", "batch_unlabelled", "learning_rate"],
        )
        validation = [] if validator is None else [ValidationHandler(val_interval, validator, epoch_level=False)]
        curves = [] if summary_writer is None else [_loss_curves(summary_writer, loss)]
        self.handlers = [
            *method_handlers,
            *validation,
            StreamPosition(loader),
            StepSeeder(batches.seed),
            LossStep(loss),
            RankSynchroniser(network, loss),
            guard,
            TeacherUpdater(teacher, network, guard),
            BatchAsItem(),
            LrScheduleHandler(lr_scheduler, print_lr=False, epoch_level=False),
            *curves,
            checkpoint,
            StopOnSignal(checkpoint),
            *([RunProgressBar(loss, max_steps)] if is_rank0() else []),
            FinalModelSaver(teacher.module, Path(ckpt_dir) / "model.pt", max_steps, preprocessing_record),
            StopAtStep(max_steps),
        ]

    def attach(self, engine: Engine) -> None:
        """Attach all of them to the trainer, in their order."""
        for handler in self.handlers:
            handler.attach(engine)


class ValidationHandlers:
    """Handlers of the evaluator that validates during training.

    Args:
        best_model: saves the best model.
        loss: whose `step` is the position on the curves.
        summary_writer: of TensorBoard; `None`, as on all ranks but the first, writes neither curves nor pictures.
        picture_dir: folder of overlay pictures.
        pictures: number of cases that are drawn.
    """

    def __init__(
        self,
        best_model: BestModelSaver,
        loss: WeightedLoss,
        summary_writer: SummaryWriter | None,
        picture_dir: str | Path,
        pictures: int = 4,
    ) -> None:
        self.handlers: list[Any] = [best_model]
        if summary_writer is not None:
            self.handlers += [
                TensorBoardStatsHandler(
                    summary_writer, iteration_log=False, global_epoch_transform=lambda _: loss.step
                ),
                OverlayPictures(picture_dir, summary_writer, limit=pictures, step=lambda: loss.step),
            ]

    def attach(self, engine: Engine) -> None:
        """Attach all of them to the evaluator, in their order."""
        for handler in self.handlers:
            handler.attach(engine)


def summary_writer(log_dir: str | Path) -> SummaryWriter | None:
    """TensorBoard's writer on the first rank, `None` on the others.

    Args:
        log_dir: folder of its files.
    """
    if not is_rank0():
        return None
    from torch.utils.tensorboard import SummaryWriter  # not at the top: importing it takes a second

    return SummaryWriter(log_dir=str(log_dir))


def _loss_curves(writer: SummaryWriter, loss: WeightedLoss) -> TensorBoardStatsHandler:
    return TensorBoardStatsHandler(
        writer, iteration_log=True, epoch_log=False, output_transform=lambda output: loss.scalars(output[0]["loss"])
    )
