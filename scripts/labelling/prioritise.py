# SPDX-License-Identifier: Apache-2.0
"""Which unlabelled case to label next: uncertain, far from the prototypes, and unlike the cases before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

from scripts.data.cases import CaseLists
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
"""A priority counts from 1, the case to label first."""


class ClassEmbeddings:
    """A predictor that runs the network and sums up the embeddings of each class along the way.

    A voxel counts for the class that the network predicts. At most `voxels_per_call` voxels per class and call are
    used, evenly spaced, because neighbours are nearly the same. Classes without prototypes are left out.

    Args:
        network: image to logits.
        inferer: gives logits and features.
        projection_head: from features to the space of the prototypes; `None` if the memory holds features.
        memory: the prototypes.
        device: of all of them.
        voxels_per_call: see above.
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
        """Start a new case."""
        self.sums = torch.zeros(self.memory.num_classes, self.memory.feature_dim)
        self.distances = torch.zeros(self.memory.num_classes)
        self.counts = torch.zeros(self.memory.num_classes)

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, D, H, W)` of windows `(B, C, D, H, W)`, on the device of the windows."""
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
        """Mean over the classes of the mean cosine distance to the nearest prototype, in [0, 2]; `None` if no class
        was found.
        """
        found = self.counts > 0
        return float((self.distances[found] / self.counts[found]).mean()) if bool(found.any()) else None

    def descriptor(self) -> torch.Tensor:
        """Mean directions of the known classes, concatenated: `(len(known) * D,)`, zeros for a class not found."""
        return normalize(self.sums[self.known], dim=1).flatten()

    def known_descriptor(self) -> torch.Tensor:
        """The descriptor of the prototypes, which stands for the labelled cases."""
        means = [normalize(self.memory.prototypes(c), dim=1).mean(dim=0) for c in self.known]
        return normalize(torch.stack(means).cpu(), dim=1).flatten()


def load_prototypes(ckpt_dir: str | Path, network: nn.Module, loss: nn.Module, memory: PrototypeMemory) -> None:
    """Fill network and loss, and with the loss its memory and heads, from the newest checkpoint in a folder.

    The memory holds projections of the network that was trained, so its weights are taken and not the averaged ones.

    Args:
        ckpt_dir: folder of `checkpoint_*.pt`.
        network: of the configuration.
        loss: whose terms hold `memory`.
        memory: is checked for prototypes.

    Raises:
        UserError: if there is no checkpoint, or it belongs to another configuration or holds no prototype.
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
                "method's config files of that run."
            ) from error
    if int(memory.counts.sum()) == 0:
        raise UserError(
            f"{path} holds no prototypes to measure distances to: train with a method that uses them (the default, "
            "prototype, ssnet, ...) until its contrast has begun."
        )
    logger.info(f"Prototypes of step {content['run']['step']} from {path}: {memory.summary()}.")


def farthest_first(points: torch.Tensor, known: torch.Tensor) -> tuple[list[int], list[float]]:
    """Order points so that each is the farthest from those before it (Sener and Savarese, ICLR 2018).

    Args:
        points: `(N, D)`.
        known: `(M, D)`, M at least 1, points that are covered already.

    Returns:
        Indices in the order of choice, and for each point its Euclidean distance to the nearest of `known` and of the
        points chosen before it. Among equally far points the first is chosen.
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
        name: the case's.
        image: its first file.
        uncertainty: 1 minus the confidence of `scripts.inference.segmenter`, in [0, 1].
        prototype_distance: in [0, 2]; `None` if no structure was found.
        descriptor: `(D,)`, which cases are compared by.
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
    """Segment every unlabelled case and write `output_dir/prioritise_unlabelled.csv`, the case to label next first.

    Args:
        cases: of the datalist.
        segmenter: segments a case, with `embeddings` as its predictor.
        embeddings: sums up the embeddings of a case.
        output_dir: folder of the table.
        order_by: criteria whose priorities are averaged.

    Returns:
        The table's file, if no case failed.

    Raises:
        UserError: without unlabelled cases, or for an unknown criterion; at the end, naming the cases that failed.
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
    logger.info(f"{len(rows)} cases written to {path}; label next: {', '.join(str(row[1]) for row in rows[:5])}.")
    return path


def priority_rows(
    candidates: Sequence[Candidate], known: torch.Tensor, order_by: Sequence[str] = CRITERIA
) -> list[tuple[object, ...]]:
    """Rows of `COLUMNS`, the case to label next first.

    Args:
        candidates: the cases. One without any structure counts as the farthest from all prototypes.
        known: descriptor of the labelled cases.
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
    """1 for the largest value; equal values share the smaller number."""
    return [1 + sum(other > value for other in values) for value in values]
