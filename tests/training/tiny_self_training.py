# SPDX-License-Identifier: Apache-2.0
"""Self-training on volumes of a few voxels: cases, a network, and an engine with the handler attached."""

from __future__ import annotations

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import Dataset, MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from torch import nn

from scripts.data.spec import DatasetSpec
from scripts.data.streams import TwoStreamLoader
from scripts.data.transforms import StoredLabels
from scripts.training.self_training import SelfTraining
from scripts.training.teacher import Teacher

SHAPE = (3, 4, 12)


def volume(*boxes):
    """An image `(1, 3, 4, 12)` of -1, with 1 in slices of the last axis."""
    image = -torch.ones(1, *SHAPE)
    for first, last in boxes:
        image[..., first:last] = 1.0
    return image


class Threshold(nn.Module):
    """Class 1 where the image is above `threshold`; `scale` stands for trained weights."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.threshold = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.cat([self.threshold - x, x - self.threshold], dim=1) * self.scale


def as_items(cases):
    return {"image": MetaTensor(cases["image"]), **({"label": MetaTensor(cases["label"])} if "label" in cases else {})}


class Run:
    """The handler, attached to an engine that has what it needs of a trainer."""

    def __init__(
        self, folder, labelled, unlabelled, start=5, step=lambda *_: None, batch_unlabelled=1, workers=0, **options
    ):
        self.network = Threshold()
        self.teacher = Teacher(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        datasets = Dataset(labelled, Compose([])), Dataset(unlabelled, Compose([]))
        self.loader = TwoStreamLoader(*datasets, 1, batch_unlabelled, seed=0, num_workers=workers)
        self.handler = SelfTraining(
            self.teacher,
            SimpleInferer(),
            as_items,
            StoredLabels(folder),
            start,
            20,
            folder / "labels_only.pt",
            DatasetSpec(folder),
            **options,
        )
        self.folder = folder / "round_1"
        self.engine = Engine(step)
        self.engine.network, self.engine.loss_function = self.network, nn.Module()
        self.engine.optimizer, self.engine.data_loader = self.optimizer, self.loader
        self.engine.to_kwargs = {}
        self.engine.state.device, self.engine.state.iteration = torch.device("cpu"), start
        self.handler.attach(self.engine)

    def label(self):
        self.engine.state.iteration += 1  # the handler acts when the next step starts
        self.handler.label(self.engine)

    def stored(self, name):
        return np.load(self.folder / f"{name}.npz")["labels"]

    def drawn(self):
        return {key[1] for i in range(60) for key in self.loader.batches.batch(i) if key[0] == "unlabelled"}


def labelled_case(*boxes):
    return {"case": "l", "image": volume(*boxes), "label": (volume(*boxes) > 0).to(torch.uint8)}


def unlabelled_case(name, *boxes):
    return {"case": name, "image": volume(*boxes)}
