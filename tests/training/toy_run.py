# SPDX-License-Identifier: Apache-2.0
"""A short training run: the bundle's trainer and handlers on volumes of 2 x 3 x 4 voxels."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, CopyItemsd, RandGaussianNoised
from torch import nn

from scripts.data.streams import StreamPosition, TwoStreamLoader
from scripts.prototypes.memory import PrototypeMemory
from scripts.training.checkpoint import StopOnSignal, TrainingCheckpoint
from scripts.training.guard import GradientGuard
from scripts.training.inferer import FeatureInferer
from scripts.training.memory_updater import MemoryBankUpdater
from scripts.training.step_handlers import StepSeeder, StopAtStep
from scripts.training.teacher import Teacher, TeacherUpdater
from scripts.training.trainer import TwoStreamTrainer

EPOCH = 4


class Killed(Exception):
    """Stands for SIGKILL."""


class ToyLoss(nn.Module):
    """Cross-entropy, distance to the memory, and a head that only every third step uses."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory
        self.head = nn.Linear(3, 1)
        self.calls = []

    def forward(self, batch, label):
        features = batch.features
        loss = nn.functional.cross_entropy(batch.labelled_logits, batch.labels)
        loss = loss + batch.teacher_logits.sub(batch.unlabelled_logits).square().mean()
        for c in range(self.memory.num_classes):
            if len(self.memory.prototypes(c)) > 0:
                loss = loss + (features.mean(dim=(0, 2, 3, 4)) - self.memory.prototypes(c)).square().mean()
        if self.memory.features.sum() * 1000 % 3 < 1:
            loss = loss + self.head(features.mean(dim=(0, 2, 3, 4))).square().sum()
        return loss


class Run:
    """A run with all handlers that matter to a resume, built from scratch as a new process would."""

    def __init__(
        self,
        folder,
        max_steps,
        resume=False,
        interval=1,
        keep=2,
        workers=0,
        epoch_length=EPOCH,
        killed_at=None,
        settings=None,
    ):
        torch.manual_seed(0)
        image = torch.randn(5, 1, 2, 3, 4, generator=torch.Generator().manual_seed(1))
        noise = RandGaussianNoised("image", prob=0.7, std=0.3)
        labelled = [{"image": x, "label": (x > 0).to(torch.uint8), "case": "l"} for x in image[:2]]
        unlabelled = [{"image": x, "case": "u"} for x in image[2:]]
        loader = TwoStreamLoader(
            CacheDataset(labelled, Compose([noise]), progress=False),
            CacheDataset(unlabelled, Compose([CopyItemsd("image", names="weak"), noise]), progress=False),
            1,
            1,
            seed=5,
            num_workers=workers,
        )
        self.network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.Dropout(0.3), nn.Conv3d(3, 2, 1))
        self.teacher = Teacher(self.network, 0.9)
        self.memory = PrototypeMemory(2, 3, 4, "fifo")
        self.loss = ToyLoss(self.memory)
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), *self.loss.parameters()], lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.8**step)
        self.objects = {
            "network": self.network,
            "teacher": self.teacher,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "lr_scheduler": self.scheduler,
        }
        self.steps = []
        checkpoint = TrainingCheckpoint(self.objects, folder, interval, max_steps, resume, keep, settings=settings)
        self.trainer = TwoStreamTrainer(
            device=torch.device("cpu"),
            max_epochs=-(-max_steps // epoch_length),
            epoch_length=epoch_length,
            train_data_loader=loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            inferer=FeatureInferer("0", divisor=1, teacher=self.teacher),
            train_handlers=[
                MemoryBankUpdater(
                    self.memory, source="both", confidence=0.5, only_correct=False, include_background=True
                ),
                StreamPosition(loader),
                StepSeeder(5),
                GradientGuard(),
                TeacherUpdater(self.teacher, self.network),
                LrScheduleHandler(self.scheduler, print_lr=False, epoch_level=False),
                checkpoint,
                StopOnSignal(checkpoint),
                StopAtStep(max_steps),
            ],
        )
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.steps.append(e.state.iteration))
        if killed_at is not None:
            self.trainer.add_event_handler(Events.ITERATION_STARTED(once=killed_at), self.die)

    def die(self):
        raise Killed

    def go(self):
        self.trainer.run()
        return self

    def go_until_killed(self):
        with pytest.raises(Killed):
            self.trainer.run()
        return self

    def everything(self):
        return {name: item.state_dict() for name, item in self.objects.items()}


def assert_same(a, b, where=""):
    """Compare nested containers, tensors to the bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def file_names(folder):
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())
