# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions next to their references."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from scripts.files import atomic_write
from scripts.images.label_names import COLOURS

PALETTE = np.array(COLOURS)

SIDE, CAPTION, TITLE, GAP = 240, 20, 32, 6  # pixels: panel, caption, title, gap between panels


def overlay_panels(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Draw three orthogonal slices through the foreground's centre, with the reference and then the prediction.

    Args:
        image: `(D, H, W)`, any range of intensities.
        label: reference `(D, H, W)`, classes from 0. If it has no foreground, the centre of the volume is used.
        prediction: `(D, H, W)`, classes from 0.

    Returns:
        Caption and picture of each panel, uint8 `(rows, columns, 3)`. The first axis of a slice points to the right,
        and the second one points up.
    """
    centre = np.argwhere(label > 0).mean(axis=0).astype(int) if (label > 0).any() else np.array(label.shape) // 2
    low, high = np.percentile(image, [1, 99])
    grey = np.clip((image - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    panels = []
    for name, classes in (("reference", label), ("prediction", prediction)):
        for axis, index in enumerate(centre):
            shown = np.take(classes, index, axis).T[::-1, :, None]
            background = 255 * np.take(grey, index, axis).T[::-1, :, None]
            colours = PALETTE[(shown[..., 0] - 1) % len(PALETTE)]
            mixed = np.where(shown > 0, (background + colours) / 2, background)
            panels.append((f"{name}, slice {index} of axis {axis}", mixed.astype(np.uint8)))
    return panels


def draw_panels(panels: Sequence[tuple[str, np.ndarray]], title: str) -> Image.Image:
    """Arrange the panels of `overlay_panels` in two rows of three, with captions and a title."""
    picture = Image.new("RGB", (3 * SIDE, TITLE + 2 * (CAPTION + SIDE)), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((picture.width / 2, TITLE / 2), title, "black", ImageFont.load_default(15), anchor="mm")
    for number, (caption, colours) in enumerate(panels):
        left, top = number % 3 * SIDE, TITLE + number // 3 * (CAPTION + SIDE)
        pen.text((left + SIDE / 2, top + CAPTION / 2), caption, "black", ImageFont.load_default(11), anchor="mm")
        panel = Image.fromarray(colours)
        factor = (SIDE - GAP) / max(panel.size)
        width, height = (max(1, round(factor * side)) for side in panel.size)
        place = (left + (SIDE - width) // 2, top + CAPTION + (SIDE - height) // 2)
        picture.paste(panel.resize((width, height), Image.Resampling.NEAREST), place)
    return picture


class OverlayPictures:
    """Write `NAME.png` and, if a writer is given, a TensorBoard image for the first cases of each run of an evaluator.

    The batch and the output must be decollated; `pred` and `label` are label volumes `(1, D, H, W)` or one-hot
    `(K, D, H, W)`.

    Args:
        output_dir: folder for the pictures, created if needed.
        summary_writer: TensorBoard writer, or `None`.
        limit: number of cases to draw.
        image_key: key of the image `(C, D, H, W)` in the batch, on the grid of `label`; its first channel is drawn.
        step: function that returns the training step of the pictures; `None` for a trained model.
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

    def _reset(self, engine: Engine) -> None:
        self._count = 0

    def _draw(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            if self._count >= self.limit:
                return
            self._count += 1
            name = batch["case"] if isinstance(batch.get("case"), str) else f"case_{self._count}"
            label, prediction = _classes(output[Keys.LABEL]), _classes(output[Keys.PRED])
            image = torch.as_tensor(batch[self.image_key])[0].cpu().numpy()
            step = self.step() if self.step is not None else None
            panels = overlay_panels(image, label, prediction)
            picture = draw_panels(panels, name if step is None else f"{name}, step {step}")
            # Names come from the datalist: a slash in a name must not lead to another folder.
            file = re.sub(r"[/\\]", "_", name) + ".png"
            with atomic_write(self.output_dir / file) as beside:
                picture.save(beside, format="png")
            if self.summary_writer is not None:
                self.summary_writer.add_image(f"overlay/{name}", np.asarray(picture), step, dataformats="HWC")


def _classes(volume: torch.Tensor) -> np.ndarray:
    volume = torch.as_tensor(volume)
    return (volume.argmax(dim=0) if len(volume) > 1 else volume[0]).cpu().numpy().astype(np.int64)
