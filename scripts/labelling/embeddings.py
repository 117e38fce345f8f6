# SPDX-License-Identifier: Apache-2.0
"""Class embeddings of a case, and the prototypes of a finished run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.errors import UserError, first_line
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.voxels import labels_on_grid, voxel_embeddings
from scripts.training.checkpoint import newest_checkpoint
from scripts.training.inferer import FeatureInferer


class ClassEmbeddings:
    """A predictor that passes windows on to the network and keeps sums over the embeddings of each class.

    Each voxel counts for the class that the network gives it; of a class at most `rows_per_call` voxels of each call,
    evenly spaced, as neighbours say nearly the same. Classes without prototypes are left out.

    Args:
        network: image to logits.
        tap: gives logits and features.
        projection_head: from features to the space of the prototypes; `None` where the memory holds features.
        memory: the prototypes.
        device: where all of them are.
        rows_per_call: see above.
    """

    def __init__(
        self,
        network: nn.Module,
        tap: FeatureInferer,
        projection_head: nn.Module | None,
        memory: PrototypeMemory,
        device: torch.device | str = "cpu",
        rows_per_call: int = 256,
    ) -> None:
        self.network, self.tap, self.memory = network.eval(), tap, memory
        self.projection_head = nn.Identity() if projection_head is None else projection_head.eval()
        self.device, self.rows_per_call = torch.device(device), rows_per_call
        self.reset()

    @property
    def known(self) -> list[int]:
        """Classes that have prototypes."""
        return [c for c, rows in self.memory.summary().items() if rows > 0]

    def reset(self) -> None:
        """Forget the case before."""
        self.sums = torch.zeros(self.memory.num_classes, self.memory.feature_dim)
        self.distances = torch.zeros(self.memory.num_classes)
        self.counts = torch.zeros(self.memory.num_classes)

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, D, H, W)` of windows `(B, C, D, H, W)`, on the device of the windows."""
        images = windows.to(self.device).as_subclass(torch.Tensor)
        logits, features = self.tap.logits_and_features(images, self.network)
        classes = labels_on_grid(logits.argmax(dim=1), features.shape[2:]).reshape(-1)
        rows = voxel_embeddings(features)
        for c in self.known:
            where = (classes == c).nonzero()[:, 0]
            where = where[:: max(1, -(-len(where) // self.rows_per_call))]
            if len(where) > 0:
                self._add(c, normalize(self.projection_head(rows[where]), dim=1))
        return logits.to(windows.device)

    def _add(self, class_id: int, rows: torch.Tensor) -> None:
        nearest = 1 - (rows @ normalize(self.memory.prototypes(class_id), dim=1).T).max(dim=1).values
        self.sums[class_id] += rows.sum(dim=0).cpu()
        self.distances[class_id] += nearest.sum().cpu()
        self.counts[class_id] += len(rows)

    def prototype_distance(self) -> float | None:
        """Mean over classes of the mean cosine distance to the nearest prototype, in [0, 2]; `None` without one."""
        found = self.counts > 0
        return float((self.distances[found] / self.counts[found]).mean()) if bool(found.any()) else None

    def descriptor(self) -> torch.Tensor:
        """Mean directions of the known classes one after the other, `(len(known) * D,)`; zeros for one not found."""
        return normalize(self.sums[self.known], dim=1).flatten()

    def known_descriptor(self) -> torch.Tensor:
        """The same of the prototypes: where the labelled cases lie."""
        means = [normalize(self.memory.prototypes(c), dim=1).mean(dim=0) for c in self.known]
        return normalize(torch.stack(means).cpu(), dim=1).flatten()


logger = logging.getLogger("prototypes")


def load_prototypes(ckpt_dir: str | Path, network: nn.Module, loss: nn.Module, memory: PrototypeMemory) -> None:
    """Fill network and loss, and with the loss its memory and heads, from the newest checkpoint in a folder.

    The memory holds projections of the network that was trained, so its weights are taken and not the averaged ones.

    Args:
        ckpt_dir: folder of `checkpoint_*.pt`.
        network: of the configuration.
        loss: its terms, of which one holds `memory`.
        memory: to see whether anything is in it.

    Raises:
        UserError: if there is no state, it is of another configuration, or holds no prototype.
    """
    content, path = newest_checkpoint(ckpt_dir)
    if content is None:
        raise UserError(f"{ckpt_dir} holds no checkpoint_*.pt of a run: train first, or name its folder by --ckpt_dir.")
    for name, module in (("network", network), ("loss", loss)):
        try:
            module.load_state_dict(content[name])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} does not fit this configuration ({name}: {first_line(error)}): give the dataset's and the "
                "method's file of that run."
            ) from error
    if int(memory.counts.sum()) == 0:
        raise UserError(
            f"{path} holds no prototypes to measure distances to: train with a method that has them (the default, "
            "prototype, ssnet, ...) until its contrast has begun."
        )
    logger.info(f"Prototypes of step {content['run']['step']} from {path}: {memory.summary()}.")
