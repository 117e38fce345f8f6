# SPDX-License-Identifier: Apache-2.0
"""Compare the outputs of exported files, each in its own runtime, with those of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.export.settings import ExportSettings
from scripts.inference.models import load_model

MAX_LOGIT_DIFFERENCE = 1e-3
MIN_AGREEMENT = 0.9999
SIDES = ((2, 2, 2), (4, 3, 2), (2, 3, 5))
"""Sides in units of the divisor. None equals the example that the export traces."""
BATCHES = (1, 3)


@dataclass(frozen=True)
class Comparison:
    """Result of one file on one input of shape `(B, C, D, H, W)`.

    `logit_difference` is the largest absolute difference of logits, `agreement` the fraction of equal labels.
    """

    file: str
    shape: tuple[int, ...]
    logit_difference: float
    agreement: float

    @property
    def passes(self) -> bool:
        """Whether both values are within their limits; a difference of NaN does not pass."""
        return self.logit_difference < MAX_LOGIT_DIFFERENCE and self.agreement > MIN_AGREEMENT


def compare(settings: ExportSettings, files: Sequence[Path], seed: int = 0) -> list[Comparison]:
    """Compare every file with the network in PyTorch, fp32 on the CPU, on standard normal images of several sizes.

    Args:
        settings: configuration and weights that the files were exported from.
        files: `.ts`, `.pt2` or `.onnx`.
        seed: seed of the random images.

    Raises:
        UserError: if a file is missing, has another ending, or needs a runtime that is not installed.
    """
    network = settings.network()
    divisor, channels = settings.value("size_divisor"), settings.value("in_channels")
    generator = torch.Generator().manual_seed(seed)
    runs = {str(file): load_model(file, network, "cpu") for file in files}
    rows = []
    with torch.no_grad():
        for sides in SIDES:
            for batch in BATCHES:
                image = torch.randn(batch, channels, *(side * divisor for side in sides), generator=generator)
                expected = network(image)
                for name, run in runs.items():
                    found = run(image)
                    same = (found.argmax(1) == expected.argmax(1)).double().mean().item()
                    rows.append(Comparison(name, tuple(image.shape), (found - expected).abs().max().item(), same))
    return rows


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as a text table, one per line; the last line says how many do not pass."""
    width = max(len(row.file) for row in rows)
    lines = [f"{'file':{width}}  {'batch and sides':>15}  logit difference  equal labels"]
    for row in rows:
        shape = "x".join(str(side) for side in (row.shape[0], *row.shape[2:]))
        mark = "" if row.passes else "  TOO FAR"
        lines.append(f"{row.file:{width}}  {shape:>15}  {row.logit_difference:16.1e}  {row.agreement:12.4%}{mark}")
    failed = sum(not row.passes for row in rows)
    lines.append(
        f"{len(rows)} comparisons, {failed} with a logit difference of {MAX_LOGIT_DIFFERENCE:g} or more, or "
        f"{MIN_AGREEMENT:.2%} or fewer equal labels."
    )
    return "\n".join(lines)
