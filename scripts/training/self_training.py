# SPDX-License-Identifier: Apache-2.0
"""Self-training: train on labels, store pseudo-labels of whole volumes, and train on with both."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from torch import nn

from scripts.data.corrected_labels import with_foreign_labels
from scripts.data.labels import class_type
from scripts.data.spec import CaseLists, DatasetSpec
from scripts.data.streams import LABELLED, UNLABELLED, TwoStreamLoader
from scripts.data.transforms import StoredLabels, read_pseudo_label
from scripts.data.weights import save_weights
from scripts.distributed.collectives import all_gather_items, broadcast_from_rank0, is_rank0, shard_items
from scripts.errors import UserError
from scripts.evaluation.metrics import overlap_metrics
from scripts.files import atomic_write, csv_rows, csv_text, file_digest, write_text
from scripts.images.components import keep_largest, largest_component
from scripts.progress import progress_bar
from scripts.prototypes.voxels import NO_CLASS
from scripts.training.teacher import Teacher

logger = logging.getLogger("SelfTraining")

TABLE = "stability.csv"


class SelfTraining:
    """Train on with pseudo-labels of the unlabelled cases (Lee, ICML-W 2013; ST++, Yang et al., CVPR 2022).

    Before the first step after `start` completed steps, the teacher segments every unlabelled case as a whole volume,
    on the training grid, and again in each further round; rounds have the same number of steps. It does so twice, on
    the image and on the image with another contrast. The mean of both is the pseudo-label, and their Dice is the
    case's stability. Cases whose stability is an outlier (below the lower quartile by more than 1.5 times the
    interquartile range, Tukey's fence) are left out of training. A class which is one connected component in every
    labelled case keeps its largest component only.

    A round is left out if the teacher has not learned a structure yet, that is, if its mean Dice on the labelled cases
    that hold the structure is below `min_dice`: its pseudo-labels would teach that the structure is absent. Until the
    next round, batches then hold labelled cases only.

    Training then continues, and the transform `scripts.data.transforms.StoredLabelsd` adds the pseudo-labels to the
    batches of unlabelled cases. The curve of the learning rate starts again in the first round (`restart`), which takes
    the network away from the weights that made the pseudo-labels. Starting from the initial weights again lost whole
    classes in short runs (docs/results/accuracy.md).

    Where another program's label of a case (`foreign_labels`) contradicts its pseudo-label, the voxel gets `NO_CLASS`
    and is left out of training. Where it has the `ignore_value`, the pseudo-label stands.

    A resumed run reads the stored pseudo-labels; if it was killed while they were made, it makes the missing ones.
    A finished run that is resumed with more steps goes through the rounds again, from its final weights. With several
    ranks each segments its share of the cases.

    Network and loader are those of the trainer. The loader draws unlabelled cases after `start` only,
    whatever its own start says.

    Args:
        teacher: averages the network; it makes the pseudo-labels.
        inferer: of whole volumes, such as MONAI's `SlidingWindowInferer`.
        transforms: the deterministic transforms of a case, which put image and label on the training grid.
        stored: folder of the pseudo-labels; that of a round holds a file for each case, and `stability.csv`.
        start: number of completed steps after which unlabelled cases take part.
        max_steps: length of the run.
        labels_only: file for the teacher's weights at that step, the result of training on the labels alone. A new run
            removes a file that is there; a finished run that is resumed with more steps keeps its own.
        dataset: the dataset block, whose preprocessing is recorded with these weights; it names the folder of other
            programs' labels.
        rounds: how many times the cases are labelled, at least 1.
        fence: how many interquartile ranges below the lower quartile a case is an outlier; with `inf` none is.
        min_dice: Dice in [0, 1] from which a structure counts as learned; 0 never leaves a round out.

    Raises:
        UserError: if pseudo-labels are missing, on a resume or because processes do not share a folder; or for less
            than one round.
    """

    def __init__(
        self,
        teacher: Teacher,
        inferer: Inferer,
        transforms: Callable,
        stored: StoredLabels,
        start: int,
        max_steps: int,
        labels_only: str | Path,
        dataset: DatasetSpec,
        rounds: int = 1,
        fence: float = 1.5,
        min_dice: float = 0.3,
    ) -> None:
        if rounds < 1:
            raise UserError(f"self_training::rounds must be at least 1, got {rounds} (for none, --restart 1).")
        self.teacher, self.inferer, self.transforms = teacher, inferer, transforms
        self.stored = stored
        self.starts = sorted({start + round(index * (max_steps - start) / rounds) for index in range(rounds)})
        self.max_steps, self.min_dice = max_steps, min_dice
        self.labels_only, self.dataset, self.fence = Path(labels_only), dataset, float(fence)  # `inf` arrives as text
        self.selected = False

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act before the first step of each round; a resumed run reads its selection when its first epoch starts."""
        loader = engine.data_loader
        assert isinstance(loader, TwoStreamLoader)
        labelled, unlabelled = (loader.dataset.datasets[stream].data for stream in (LABELLED, UNLABELLED))
        self.names = [case["case"] for case in unlabelled]
        foreign, _ = with_foreign_labels(CaseLists(unlabelled=unlabelled), self.dataset.foreign_labels_dir)
        self.labelled = Dataset(labelled, self.transforms)
        self.unlabelled = Dataset(foreign.unlabelled, self.transforms)
        self.loader = loader
        # The batch of the step before which the cases are labelled has been drawn by then.
        self.unlabelled_start = max(loader.batches.unlabelled_start, self.starts[0] + 1)
        loader.batches.unlabelled_start = self.unlabelled_start
        engine.add_event_handler(Events.EPOCH_STARTED, self.resume)
        for start in self.starts:
            engine.add_event_handler(Events.ITERATION_STARTED(once=start + 1), self.label)

    def resume(self, engine: SupervisedTrainer) -> None:
        """Select the stable cases if they are labelled already; in a new run, remove the weights of an earlier one."""
        if engine.state.iteration == 0:
            broadcast_from_rank0(lambda: self.labels_only.unlink(missing_ok=True))
        if self.names and not self.selected and engine.state.iteration > self.starts[0]:
            self._enter_round(engine.state.iteration)
            self._select()

    def label(self, engine: SupervisedTrainer) -> None:
        """Make the pseudo-labels, and draw unlabelled cases from now on."""
        if not self.names:
            return
        self._enter_round(engine.state.iteration)
        if is_rank0() and self.stored.round == 1 and not self.labels_only.exists():
            save_weights(self.teacher.module, self.labels_only, self.dataset)
        self._store_pseudo_labels(engine)
        self._select()
        # Loader workers are ahead of the training step: a new iterator draws from the selected cases.
        self.loader.batches.start = engine.state.iteration
        engine.set_data(self.loader)

    def _enter_round(self, step: int) -> None:
        """Set the round of step `step`, counted from 1."""
        self.stored.round = sum(step > start for start in self.starts)

    @property
    def _next_start(self) -> int:
        """Completed steps before the next round; the length of the run if there is none."""
        return [*self.starts, self.max_steps][self.stored.round]

    def _store_pseudo_labels(self, engine: SupervisedTrainer) -> None:
        self.stored.folder.mkdir(parents=True, exist_ok=True)
        network = self.teacher.module.eval()
        if self._unlearned(engine, network):
            broadcast_from_rank0(lambda: write_text(self.stored.folder / TABLE, csv_text(("case", "stability"), [])))
            return
        teacher, single = digest_of(network), self._single_components()
        rows: list[tuple[str, float]] = []
        agreements: list[tuple[str, float]] = []
        for index in progress_bar(shard_items(range(len(self.names))), "pseudo-labels"):
            name = self.names[index]
            path = self.stored.folder / f"{name}.npz"
            foreign_file = self.unlabelled.data[index].get("label")
            made_from = teacher if foreign_file is None else f"{teacher} {file_digest(foreign_file)}"
            if (stability := stored_stability(path, made_from)) is not None:
                rows.append((name, stability))
                continue
            item = self.unlabelled[index]
            image = _batch_of(item, engine)
            plain, changed = (self._probabilities(view, network) for view in (image, other_contrast(image)))
            labels = (plain + changed).argmax(dim=1)[0].to(class_type(plain.shape[1])).cpu().numpy()
            keep_largest(labels, single)
            stability = agreement(plain.argmax(dim=1)[0], changed.argmax(dim=1)[0], plain.shape[1])
            if foreign_file is not None:
                foreign = item["label"].as_tensor()[0].cpu().numpy()
                foreign = np.where(foreign == NO_CLASS, labels, foreign)
                both = torch.from_numpy(labels), torch.from_numpy(foreign)
                agreements.append((name, agreement(*both, plain.shape[1])))
                labels = np.where(foreign == labels, labels, NO_CLASS).astype(labels.dtype)
            with atomic_write(path, ".npz") as temporary:
                np.savez(temporary, labels=labels, stability=stability, teacher=made_from)
            rows.append((name, stability))
        _log_agreements(dict(all_gather_items(agreements)))
        # With fewer cases than ranks a case is on several of them.
        text = csv_text(("case", "stability"), sorted(dict(all_gather_items(rows)).items()))
        broadcast_from_rank0(lambda: write_text(self.stored.folder / TABLE, text))

    @torch.no_grad()
    def _probabilities(self, image: torch.Tensor, network: nn.Module) -> torch.Tensor:
        logits = self.inferer(image, network)
        assert isinstance(logits, torch.Tensor)
        return logits.float().softmax(dim=1)

    def _unlearned(self, engine: SupervisedTrainer, network: nn.Module) -> list[int]:
        """Classes whose mean Dice on the labelled cases that hold them is below `min_dice`; they are logged."""
        scores: list[tuple[int, int, float]] = []
        for index in shard_items(range(len(self.labelled))):
            item = self.labelled[index]
            labels = item["label"].as_tensor()[0].to(engine.state.device)
            found = self._probabilities(_batch_of(item, engine), network).argmax(dim=1)[0]
            found[labels == NO_CLASS] = 0
            for label in labels[labels > 0].unique().tolist():
                scores.append((label, index, overlap_metrics(found == label, labels == label)[0]))
        by_class: dict[int, list[float]] = defaultdict(list)
        for label, _, dice in sorted(set(all_gather_items(scores))):
            by_class[label].append(dice)
        unlearned = {label: fmean(each) for label, each in by_class.items() if fmean(each) < self.min_dice}
        if unlearned and is_rank0():
            told = ", ".join(f"{self.dataset.label_names[label]} ({dice:.2f})" for label, dice in unlearned.items())
            until = f"before step {self._next_start}" if self._next_start < self.max_steps else "any more"
            logger.warning(
                f"Not learned yet, by the Dice on the labelled cases: {told}. Unlabelled cases are not used {until}. "
                "Longer training may help (--max_steps)."
            )
        return list(unlearned)

    def _single_components(self) -> list[int]:
        """Classes that are one component, 26-connected, in every labelled case that holds them and ignores no voxel."""
        seen: set[int] = set()
        several: set[int] = set()
        for item in self.labelled:
            labels = item["label"].as_tensor()[0].cpu().numpy()
            if labels.min() == NO_CLASS:  # parts of a structure may be missing, such as slices in between
                continue
            for label in map(int, np.unique(labels[labels > 0])):
                seen.add(label)
                mask = labels == label
                # A stray voxel of a careless annotation does not make a structure of two parts.
                if largest_component(mask).sum() < 0.99 * mask.sum():
                    several.add(label)
        return sorted(seen - several)

    def _select(self) -> None:
        table = self.stored.folder / TABLE
        if not table.exists():
            raise UserError(f"{table} of the run to resume is missing: restore the folder, or start without --resume.")
        stability = {row["case"]: float(row["stability"]) for row in csv_rows(table)}
        self.selected = True
        if not stability:  # a round that is left out
            self.loader.batches.unlabelled_start = self._next_start + 1
            return
        self.loader.batches.unlabelled_start = self.unlabelled_start
        values = [stability[name] for name in self.names]
        for name in self.names:
            if not (path := self.stored.folder / f"{name}.npz").exists():
                raise UserError(
                    f"The pseudo-label {path} is missing: restore it, or start without --resume; processes on several "
                    "machines need a ckpt_dir that they share."
                )
        lowest = lower_fence(values, self.fence)
        kept = [index for index, value in enumerate(values) if value >= lowest]
        self.loader.batches.select_unlabelled(kept)
        logger.info(
            f"Pseudo-labels of {len(kept)} of {len(values)} unlabelled cases are used; their stability "
            f"(Dice, median {np.median(values):.3f}) is in {table}."
        )


def _batch_of(item: Mapping[str, Any], engine: SupervisedTrainer) -> torch.Tensor:
    """The image of a case as a batch of one, on the device of the engine."""
    return item["image"].as_tensor()[None].to(engine.state.device, **engine.to_kwargs)


def _log_agreements(agreements: dict[str, float]) -> None:
    if agreements and is_rank0():
        worst = min(agreements, key=lambda name: agreements[name])
        logger.info(
            f"Foreign labels of {len(agreements)} cases: their Dice with the pseudo-labels has the median "
            f"{np.median(list(agreements.values())):.3f}; the lowest is {agreements[worst]:.3f}, of {worst}."
        )


def digest_of(network: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def stored_stability(path: Path, teacher: str) -> float | None:
    """The stability of a stored pseudo-label; `None` if there is none, it is damaged, or another teacher made it."""
    if not path.is_file():
        return None
    try:
        stored = read_pseudo_label(path)
    except UserError:
        logger.warning(f"{path} is damaged and is made anew.")
        return None
    return float(stored["stability"]) if str(stored["teacher"]) == teacher else None


def other_contrast(image: torch.Tensor) -> torch.Tensor:
    """The image with another contrast and brightness: `0.9 sign(x) |x|^0.8 + 0.1`, for normalised intensities."""
    return 0.9 * image.sign() * image.abs() ** 0.8 + 0.1


def agreement(first: torch.Tensor, second: torch.Tensor, num_classes: int) -> float:
    """Mean Dice of two label volumes `(D, H, W)` over the foreground classes that are in either; 1 if none is."""
    scores = [overlap_metrics(first == label, second == label)[0] for label in range(1, num_classes)]
    found = [score for score in scores if not math.isnan(score)]
    return sum(found) / len(found) if found else 1.0


def lower_fence(values: Sequence[float], ranges: float = 1.5) -> float:
    """The lower quartile minus some interquartile ranges; Tukey's fence has 1.5."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low - ranges * max(high - low, np.finfo(float).tiny))  # inf * 0 is no number
