# SPDX-License-Identifier: Apache-2.0
"""Order unlabelled cases for labelling by uncertainty, distance to the prototypes, and diversity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.data.spec import CaseLists
from scripts.errors import UserError, first_line
from scripts.files import csv_text, write_text
from scripts.images.find import ImageFiles, first_file
from scripts.inference.run import each_case, report_failures
from scripts.inference.segmenter import Segmenter
from scripts.labelling.pseudo_labels import unlabelled_images
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.voxels import labels_on_grid, voxel_embeddings
from scripts.training.checkpoint import newest_checkpoint
from scripts.training.inferer import FeatureInferer

logger = logging.getLogger("prioritise_unlabelled")

CRITERIA = ("uncertainty", "prototype_distance", "diversity")
COLUMNS = ("priority", "case", *CRITERIA, *(f"priority_{name}" for name in CRITERIA), "image")
"""Priorities start at 1, for the case to label first."""


class ClassEmbeddings:
    """A predictor that runs the network and also accumulates the embeddings of each class.

    The class of a voxel is the one that the network predicts. At most `voxels_per_call` voxels per class and call are
    used, evenly spaced, because neighbouring voxels have nearly the same embedding. Classes without prototypes are
    ignored.

    Args:
        network: maps images to logits.
        inferer: returns logits and features of the network.
        projection_head: maps features to the space of the prototypes; `None` if the memory holds features.
        memory: memory of prototypes.
        device: device of network, head and memory.
        voxels_per_call: maximum number of voxels per class and call.
    """

    def __init__(
        self,
        network: nn.Module,
        inferer: FeatureInferer,
        projection_head: nn.Module | None,
        memory: PrototypeMemory,
        device: torch.device | str = "cpu",
        voxels_per_call: int = 256,
    ) -> None:
        self.network, self.inferer, self.memory = network.eval(), inferer, memory
        self.projection_head = nn.Identity() if projection_head is None else projection_head.eval()
        self.device, self.voxels_per_call = torch.device(device), voxels_per_call
        self.reset()

    @property
    def known(self) -> list[int]:
        """Classes that have prototypes."""
        return [c for c, count in self.memory.summary().items() if count > 0]

    def reset(self) -> None:
        """Set the sums to zero, for the next case."""
        self.sums = torch.zeros(self.memory.num_classes, self.memory.feature_dim)
        self.distances = torch.zeros(self.memory.num_classes)
        self.counts = torch.zeros(self.memory.num_classes)

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, D, H, W)` of windows `(B, C, D, H, W)`, on the device of the windows."""
        images = windows.to(self.device).as_subclass(torch.Tensor)
        logits, features = self.inferer.logits_and_features(images, self.network)
        classes = labels_on_grid(logits.argmax(dim=1), features.shape[2:]).reshape(-1)
        embeddings = voxel_embeddings(features)
        for c in self.known:
            where = (classes == c).nonzero()[:, 0]
            where = where[:: max(1, -(-len(where) // self.voxels_per_call))]
            if len(where) > 0:
                self._add(c, normalize(self.projection_head(embeddings[where]), dim=1))
        return logits.to(windows.device)

    def _add(self, class_id: int, embeddings: torch.Tensor) -> None:
        similarity = embeddings @ normalize(self.memory.prototypes(class_id), dim=1).T
        nearest = 1 - similarity.max(dim=1).values
        self.sums[class_id] += embeddings.sum(dim=0).cpu()
        self.distances[class_id] += nearest.sum().cpu()
        self.counts[class_id] += len(embeddings)

    def prototype_distance(self) -> float | None:
        """Cosine distance to the nearest prototype, averaged over voxels and then over classes, in [0, 2].

        `None` if no class was found.
        """
        found = self.counts > 0
        return float((self.distances[found] / self.counts[found]).mean()) if bool(found.any()) else None

    def descriptor(self) -> torch.Tensor:
        """Mean directions of the known classes, concatenated, `(len(known) * D,)`; zeros for a class not found."""
        return normalize(self.sums[self.known], dim=1).flatten()

    def known_descriptor(self) -> torch.Tensor:
        """The descriptor of the prototypes, which represents the labelled cases."""
        means = [normalize(self.memory.prototypes(c), dim=1).mean(dim=0) for c in self.known]
        return normalize(torch.stack(means).cpu(), dim=1).flatten()


def load_prototypes(ckpt_dir: str | Path, network: nn.Module, loss: nn.Module, memory: PrototypeMemory) -> None:
    """Load network and loss, including the memory and heads of the loss, from the newest checkpoint in a folder.

    The memory holds embeddings of the trained network, so the weights of this network are loaded and not the averaged
    ones.

    Args:
        ckpt_dir: folder of `checkpoint_*.pt`.
        network: network of the configuration.
        loss: loss whose terms hold `memory`.
        memory: the memory, which must contain prototypes after loading.

    Raises:
        UserError: if there is no checkpoint, or it belongs to another configuration or contains no prototypes.
    """
    content, path = newest_checkpoint(ckpt_dir)
    if content is None:
        raise UserError(f"{ckpt_dir} contains no checkpoint_*.pt: train first, or give its folder with --ckpt_dir.")
    for name, module in (("network", network), ("loss", loss)):
        try:
            module.load_state_dict(content[name])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} does not fit this configuration ({name}: {first_line(error)}): give the config files of the "
                "dataset and the method of its run."
            ) from error
    if int(memory.counts.sum()) == 0:
        raise UserError(
            f"{path} contains no prototypes, so distances to them cannot be measured: train with a method that uses "
            "them (the default, prototype, ssnet, ...), past the step at which its contrast starts."
        )
    logger.info(f"Prototypes of step {content['run']['step']} from {path}: {memory.summary()}.")


def farthest_first(points: torch.Tensor, known: torch.Tensor) -> tuple[list[int], list[float]]:
    """Order points so that each one is farthest from the known points and the points before it.

    This is the greedy k-center selection of Sener and Savarese, ICLR 2018.

    Args:
        points: `(N, D)`.
        known: `(M, D)`, points that are already covered, at least one.

    Returns:
        The indices in the order in which points are chosen, and for each point its Euclidean distance to the nearest
        of `known` and of the points chosen before it. Among equally distant points, the first is chosen.
    """
    nearest = torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    order: list[int] = []
    distances = [0.0] * len(points)
    remaining = torch.ones(len(points), dtype=torch.bool)
    while remaining.any():
        index = int(nearest.masked_fill(~remaining, -1.0).argmax())
        order.append(index)
        distances[index] = float(nearest[index])
        remaining[index] = False
        nearest = torch.minimum(nearest, (points - points[index]).norm(dim=1))
    return order, distances


@dataclass(frozen=True)
class Candidate:
    """An unlabelled case and its measurements.

    Attributes:
        name: name of the case.
        image: first file of its image.
        uncertainty: 1 minus the confidence of `scripts.inference.segmenter`, in [0, 1].
        prototype_distance: cosine distance in [0, 2]; `None` if no structure was found.
        descriptor: vector `(D,)` that is used to measure the diversity of cases.
    """

    name: str
    image: str
    uncertainty: float
    prototype_distance: float | None
    descriptor: torch.Tensor


def prioritise_unlabelled(
    cases: CaseLists,
    segmenter: Segmenter,
    embeddings: ClassEmbeddings,
    output_dir: str | Path,
    order_by: str | Sequence[str] = CRITERIA,
) -> Path:
    """Segment every unlabelled case and write `output_dir/prioritise_unlabelled.csv`, starting with the case to label
    first.

    Args:
        cases: cases of the datalist.
        segmenter: segments a case, with `embeddings` as its predictor.
        embeddings: accumulates the embeddings of a case.
        output_dir: folder for the table.
        order_by: criteria whose priorities are averaged.

    Returns:
        The path of the table, if no case failed.

    Raises:
        UserError: if there is no unlabelled case or a criterion is unknown; at the end, if a case failed.
    """
    order_by = [order_by] if isinstance(order_by, str) else list(order_by)
    if not order_by or not set(order_by) <= set(CRITERIA):
        raise UserError(f"order_by must be one or more of {', '.join(CRITERIA)}, got {order_by}.")
    images = unlabelled_images(cases)
    candidates: list[Candidate] = []

    def one(image: ImageFiles, name: str) -> None:
        embeddings.reset()
        confidence = segmenter(image).sums.confidence()
        candidates.append(
            Candidate(name, first_file(image), 1 - confidence, embeddings.prototype_distance(), embeddings.descriptor())
        )

    failures = each_case(images, one, "prioritise_unlabelled")
    path = Path(output_dir) / "prioritise_unlabelled.csv"
    rows = priority_rows(candidates, embeddings.known_descriptor(), order_by)
    write_text(path, csv_text(COLUMNS, rows))
    report_failures(failures, len(images), output_dir)
    logger.info(f"{len(rows)} cases written to {path}. Label first: {', '.join(str(row[1]) for row in rows[:5])}.")
    return path


def priority_rows(
    candidates: Sequence[Candidate], known: torch.Tensor, order_by: Sequence[str] = CRITERIA
) -> list[tuple[object, ...]]:
    """Return rows of `COLUMNS`, ordered by priority.

    Args:
        candidates: the cases. A case in which no structure was found gets the largest distance to the prototypes.
        known: descriptor of the labelled cases, `(D,)`.
        order_by: criteria whose priorities are averaged; ties are ordered by name.
    """
    if not candidates:
        return []
    chosen, diversity = farthest_first(torch.stack([each.descriptor for each in candidates]), known[None])
    distances = [2.0 if each.prototype_distance is None else each.prototype_distance for each in candidates]
    priorities = {
        "uncertainty": _priorities([each.uncertainty for each in candidates]),
        "prototype_distance": _priorities(distances),
        "diversity": [chosen.index(index) + 1 for index in range(len(candidates))],
    }
    means = [sum(priorities[name][index] for name in order_by) / len(order_by) for index in range(len(candidates))]
    order = sorted(range(len(candidates)), key=lambda index: (means[index], candidates[index].name))
    rows = []
    for place, index in enumerate(order, start=1):
        each = candidates[index]
        distance = "" if each.prototype_distance is None else f"{each.prototype_distance:.4f}"
        values = (f"{each.uncertainty:.4f}", distance, f"{diversity[index]:.4f}")
        rows.append((place, each.name, *values, *(priorities[name][index] for name in CRITERIA), each.image))
    return rows


def _priorities(values: Sequence[float]) -> list[int]:
    """Rank values from 1 for the largest; equal values get the same rank."""
    return [1 + sum(other > value for other in values) for value in values]
