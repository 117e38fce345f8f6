# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions next to their references."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from monai.utils.enums import CommonKeys as Keys
from torch.utils.tensorboard import SummaryWriter

from scripts.files import atomic_write

PALETTE = ("#e41a1c", "#377eb8", "#4daf4a", "#ff7f00", "#984ea3", "#ffff33", "#a65628", "#f781bf", "#17becf", "#999999")
"""Colours of classes 1, 2, ..., repeated if there are more classes than colours."""


def overlay_figure(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, title: str) -> Figure:
    """Draw three orthogonal slices through the centre of the foreground: reference in the upper row, prediction below.

    Args:
        image: `(D, H, W)`, any range.
        label: reference `(D, H, W)`, classes from 0. If it has no foreground, the centre of the volume is used.
        prediction: `(D, H, W)`, classes from 0.
        title: title of the figure.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 3)
    centre = (
        [int(c) for c in np.argwhere(label > 0).mean(axis=0)] if (label > 0).any() else [s // 2 for s in label.shape]
    )
    low, high = np.percentile(image, [1, 99])
    for row, (name, classes) in enumerate((("reference", label), ("prediction", prediction))):
        for axis in range(3):
            panel = axes[row][axis]
            panel.imshow(np.take(image, centre[axis], axis).T, cmap="gray", vmin=low, vmax=high, origin="lower")
            shown = np.take(classes, centre[axis], axis).T
            colours = np.where(shown > 0, (shown - 1) % len(PALETTE), 0)
            panel.imshow(
                np.ma.masked_where(shown == 0, colours),
                cmap=ListedColormap(PALETTE),
                vmin=0,
                vmax=len(PALETTE) - 1,
                alpha=0.5,
                origin="lower",
                interpolation="nearest",
            )
            panel.set_title(f"{name}, slice {centre[axis]} of axis {axis}", fontsize=8)
            panel.set_axis_off()
    return figure


class OverlayPictures:
    """Write `NAME.png` and, if a writer is given, a TensorBoard image for the first cases of each run of an evaluator.

    Needs a decollated batch and output; `pred` and `label` are label volumes `(1, D, H, W)` or one-hot `(K, D, H, W)`.

    Args:
        output_dir: folder for the pictures, created if needed.
        summary_writer: TensorBoard writer, or `None`.
        limit: number of cases to draw.
        image_key: entry of the batch with the image `(C, D, H, W)` on the grid of `label`; its first channel is drawn.
        step: returns the training step that the pictures belong to; `None` for a trained model.
    """

    def __init__(
        self,
        output_dir: str | Path,
        summary_writer: SummaryWriter | None = None,
        limit: int = 4,
        image_key: str = "image",
        step: Callable[[], int] | None = None,
    ) -> None:
        self.output_dir, self.summary_writer, self.limit = Path(output_dir), summary_writer, limit
        self.image_key, self.step = image_key, step
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that decollates its batches."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.COMPLETED, self._free)

    def _reset(self, engine: Engine) -> None:
        self._count = 0

    def _free(self, engine: Engine) -> None:
        # A figure is thousands of objects that refer to each other. Python collects such cycles only when the number of
        # new objects reaches a quarter of the half million in use, so memory would grow for about a thousand steps.
        if self._count > 0:
            gc.collect()

    def _draw(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            if self._count >= self.limit:
                return
            self._count += 1
            name = batch["case"] if isinstance(batch.get("case"), str) else f"case_{self._count}"
            label, prediction = _classes(output[Keys.LABEL]), _classes(output[Keys.PRED])
            image = torch.as_tensor(batch[self.image_key])[0].cpu().numpy()
            step = self.step() if self.step is not None else None
            figure = overlay_figure(image, label, prediction, name if step is None else f"{name}, step {step}")
            # Names come from the datalist: a slash in one must not lead out of the folder.
            file = re.sub(r"[/\\]", "_", name) + ".png"
            with atomic_write(self.output_dir / file) as beside:
                figure.savefig(beside, dpi=80, format="png")
            if self.summary_writer is not None:
                self.summary_writer.add_figure(f"overlay/{name}", figure, global_step=step)


def _classes(volume: torch.Tensor) -> np.ndarray:
    volume = torch.as_tensor(volume)
    return (volume.argmax(dim=0) if len(volume) > 1 else volume[0]).cpu().numpy().astype(np.int64)
