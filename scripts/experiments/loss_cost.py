# SPDX-License-Identifier: Apache-2.0
"""Measure the time and memory of the contrast, the memory update and other loss terms.

    python -m scripts.experiments.loss_cost reference --reference FOLDER --patch 112 112 80
    python -m scripts.experiments.loss_cost growth --classes 2 4 8 16 --stored 32 256
    python -m scripts.experiments.loss_cost step --config datasets/left_atrium.yaml --dataset_dir FOLDER

`reference` compares the exact contrast with that of SS-Net's code; FOLDER is a checkout of
https://github.com/ycwu1997/SS-Net. Both use the same tensors and the same weights, in turn. `growth` measures
the loss part of a step against the number of classes and prototypes. `step` measures the share of memory update and
contrast in a run of `configs/train.yaml`. All compute on the CPU in one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import nn

from scripts.experiments.measure import (
    EVERYTHING,
    command_line,
    in_process,
    median_seconds,
    peak_mib,
    run_measurement,
    training_run,
)
from scripts.losses.base import LossTerm, TrainingBatch, WeightedLoss
from scripts.losses.contrast import ContrastTerm, LabelledContrastTerm, UnlabelledContrastTerm
from scripts.losses.supervised import SupervisedTerm
from scripts.losses.unlabelled import PseudoLabelTerm
from scripts.networks.heads import ProjectionHead
from scripts.prototypes.loss import ContrastivePrototypeLoss
from scripts.prototypes.memory import PrototypeMemory
from scripts.prototypes.selectors import ClassSelectors
from scripts.training.memory_updater import MemoryBankUpdater

WIDTH = 32
"""Width of the prototypes."""


# ------------------------------------------------------------------ against SS-Net's code


def load_reference(folder: Path) -> Callable[..., torch.Tensor]:
    """Load the reference's contrastive loss from a checkout.

    Raises:
        FileNotFoundError: if the folder does not hold `code/utils/contrastive_losses.py`.
    """
    path = folder / "code" / "utils" / "contrastive_losses.py"
    spec = importlib.util.spec_from_file_location("reference_contrast", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.contrastive_class_to_class_learned_memory


class ReferenceModel(nn.Module):
    """Our selectors under the names that the reference looks up, before the sigmoid."""

    def __init__(self, selectors: ClassSelectors) -> None:
        super().__init__()
        for c, (feature, memory) in enumerate(zip(selectors.feature, selectors.memory, strict=True)):
            self.add_module(f"contrastive_class_selector_{c}", nn.Sequential(*feature.children()))
            self.add_module(f"contrastive_class_selector_memory{c}", nn.Sequential(*memory.children()))


def reference(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time forward and backward pass of both exact contrasts, with and without the heads; compare their values."""
    contrast = load_reference(options.reference)
    rows = []
    for stored in ("all classes", "foreground"):
        for heads in (False, True):
            torch.manual_seed(0)
            rows.append(_compare_one(contrast, options, stored, heads))
    return rows


def _compare_one(
    reference: Callable[..., torch.Tensor], options: argparse.Namespace, stored: str, heads: bool
) -> dict[str, Any]:
    classes = options.classes
    memory = PrototypeMemory(classes, WIDTH)
    memory.update({c: torch.randn(32, WIDTH) for c in range(1 if stored == "foreground" else 0, classes)})
    projection, prediction = ProjectionHead(options.features, WIDTH), ProjectionHead(WIDTH, WIDTH)
    selectors = ClassSelectors(classes, WIDTH, "reference")
    through = "all" if heads else "used"
    own = ContrastivePrototypeLoss(
        memory,
        projection if heads else None,
        prediction if heads else None,
        selectors,
        samples_per_class=None,
        divisor="all",
        embeddings_through_heads=through,
    )
    model = ReferenceModel(selectors)
    rows_of_memory = [memory.prototypes(c).numpy() if len(memory.prototypes(c)) > 0 else None for c in range(classes)]
    maps = torch.randn(options.batch, options.features, *options.patch, requires_grad=True)
    embeddings = torch.randn(maps[:, 0].numel(), WIDTH, requires_grad=True)
    labels = (torch.rand(options.batch, *options.patch) * classes / 0.9 - classes / 9).clamp(min=0).long()

    def theirs() -> torch.Tensor:
        maps.grad = embeddings.grad = None
        features = embeddings
        if heads:
            features = prediction(projection(maps.permute(0, 2, 3, 4, 1).reshape(-1, options.features)))
        value = reference(model, features, labels.reshape(-1), classes, rows_of_memory)
        value.backward()
        return value

    def ours() -> torch.Tensor:
        maps.grad = embeddings.grad = None
        value = own(maps, labels) if heads else own(embeddings, labels.reshape(-1))
        value.backward()
        return value

    with patch.object(torch.Tensor, "cuda", lambda tensor: tensor):  # the reference always calls `cuda`
        difference = abs(float(theirs().detach()) - float(ours().detach()))
        seconds = median_seconds({"reference": theirs, "ours": ours}, options.repeats)
    return {
        "prototypes of": stored,
        "heads": heads,
        **{f"{name} s": round(value, 3) for name, value in seconds.items()},
        "ratio": round(seconds["reference"] / seconds["ours"], 2),
        "difference of values": difference,
    }


# ------------------------------------------------------------------ growth with classes and prototypes


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Processor time and memory of the update and the terms for each number of classes and of prototypes per class."""
    return [in_process(_grown, options, classes, stored) for classes in options.classes for stored in options.stored]


def _grown(options: argparse.Namespace, classes: int, stored: int) -> dict[str, Any]:
    torch.manual_seed(0)
    memory, heads = PrototypeMemory(classes, WIDTH, stored), (ProjectionHead(16, WIDTH), ProjectionHead(WIDTH, WIDTH))
    contrast = ContrastivePrototypeLoss(memory, *heads)
    updater = MemoryBankUpdater(memory, heads[0], only_correct=False, include_background=True)
    shape = (2 * options.batch, classes, *options.patch)
    batch = TrainingBatch(
        logits=torch.randn(shape, requires_grad=True),
        features=torch.randn(shape[0], 16, *options.patch, requires_grad=True),
        labels=torch.randint(classes, (options.batch, *options.patch)),
        images=torch.zeros(shape[0], 1, *options.patch),
        forward_pass=None,  # type: ignore[arg-type]
    )
    engine: Any = SimpleNamespace(state=SimpleNamespace(output={"pred": batch}))
    terms: dict[str, LossTerm] = {
        "supervised": SupervisedTerm(),
        "pseudo_label": PseudoLabelTerm(),
        "contrast": LabelledContrastTerm(contrast),
        "contrast of unlabelled": UnlabelledContrastTerm(contrast, confidence=0.0),
    }
    actions: dict[str, Callable[[], Any]] = {"memory update": lambda: updater(engine)}
    for name, term in terms.items():
        actions[name] = partial(_forward_and_backward, term, batch)
    before = peak_mib(reset=True)
    seconds = median_seconds(actions, options.repeats, processor=True)
    return {
        "classes": classes,
        "prototypes": stored,
        **{f"{name} ms": round(1000 * value, 1) for name, value in seconds.items()},
        "peak MiB": round(peak_mib() - before),
    }


def _forward_and_backward(term: LossTerm, batch: TrainingBatch) -> None:
    batch.logits.grad = batch.features.grad = None
    term(batch).backward()


# ------------------------------------------------------------------ share of a training step


def step(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of the memory update and of the contrasts, with their backward passes, in the steps of a training run."""
    return [in_process(_measured_step, options)]


def _measured_step(options: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"step": [], "memory update": [], "contrast": []}
    overrides: dict[str, Any] = {"max_steps": options.repeats + 2, "num_workers": 0, **EVERYTHING}
    if options.dataset_dir is not None:
        overrides["dataset_dir"] = options.dataset_dir
    with tempfile.TemporaryDirectory() as folder:
        workflow = training_run(Path(folder), options.config, **overrides)
        with _clocks(workflow, seconds):
            workflow.run()
        workflow.finalize()
    step_seconds, *parts = (statistics.median(values[2:]) for values in seconds.values())
    shares = {
        f"{name} %": round(100 * part / step_seconds, 1) for name, part in zip(list(seconds)[1:], parts, strict=True)
    }
    return {"configuration": " ".join(options.config) or "demo", "step s": round(step_seconds, 3), **shares}


@contextmanager
def _clocks(workflow: ConfigWorkflow, seconds: dict[str, list[float]]) -> Iterator[None]:
    """Context in which a run appends the seconds of every step and of its parts.

    The backward pass of a contrast is part of the backward pass of the whole loss. It is therefore run once more
    separately, and this time is subtracted from the time of the step.
    """
    trainer: Engine = workflow.trainer
    loss: WeightedLoss = workflow.parser.get_parsed_content("loss")
    started, extra, contrast = 0.0, 0.0, 0.0

    def begin(engine: Engine) -> None:
        nonlocal started, extra, contrast
        started, extra, contrast = time.perf_counter(), 0.0, 0.0

    def end(engine: Engine) -> None:
        seconds["step"].append(time.perf_counter() - started - extra)
        seconds["contrast"].append(contrast)

    def timed_term(forward: Callable[[TrainingBatch], torch.Tensor], batch: TrainingBatch) -> torch.Tensor:
        nonlocal extra, contrast
        start = time.perf_counter()
        value = forward(batch)
        forward_ended = time.perf_counter()
        torch.autograd.grad(value, [batch.features, *loss.parameters()], retain_graph=True, allow_unused=True)
        ended = time.perf_counter()
        contrast += ended - start
        extra += ended - forward_ended
        return value

    update = MemoryBankUpdater.__call__

    def timed_update(self: MemoryBankUpdater, engine: Engine) -> None:
        start = time.perf_counter()
        update(self, engine)
        seconds["memory update"].append(time.perf_counter() - start)

    trainer.add_event_handler(Events.ITERATION_STARTED, begin)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
    for term in loss.terms.values():
        if isinstance(term, ContrastTerm):
            term.forward = partial(timed_term, term.forward)  # type: ignore[method-assign]
    with patch.object(MemoryBankUpdater, "__call__", timed_update):
        yield


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser, options = command_line(__doc__, (reference, growth, step))
    for name, option in options.items():
        option("--repeats", type=int, default=5)
        if name != "step":
            option("--patch", type=int, nargs=3, default=(96, 80, 48), help="voxels along each axis")
            option("--batch", type=int, default=1, help="number of cases of each kind")
    option = options["reference"]
    option("--reference", type=Path, required=True, help="folder of the checkout of SS-Net")
    option("--classes", type=int, default=2)
    option("--features", type=int, default=16, help="channels of the feature maps")
    option = options["growth"]
    option("--classes", type=int, nargs="+", default=(2, 4, 8, 16))
    option("--stored", type=int, nargs="+", default=(32, 256), help="prototypes per class")
    option = options["step"]
    option("--config", nargs="*", default=(), help="files in configs/ after train.yaml")
    option("--dataset_dir", type=Path, help="folder of the images; not needed for the demo")
    torch.set_num_threads(1)
    run_measurement(parser, options, argv)


if __name__ == "__main__":
    main()
