# SPDX-License-Identifier: Apache-2.0
"""Overrides of `configs/train.yaml` that make a run on small demo volumes take milliseconds a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def tiny_overrides(demo: Path, folder: Path, batch: int = 1) -> dict[str, Any]:
    """A small network and small patches on one CPU in fp32, unlabelled cases from the first step.

    Args:
        demo: folder of the demo volumes, read only.
        folder: outputs and models go below it.
        batch: labelled patches a step, and as many unlabelled ones.
    """
    return {
        "bundle_root": str(ROOT),
        "data_source": str(demo),
        "dataset_dir": str(demo),
        "output_dir": str(folder / "out"),
        "ckpt_dir": str(folder / "models"),
        "roi_size": [32, 32, 16],
        "spacing": [3.0, 3.0, 4.0],
        "base_filters": 4,
        "precision": "fp32",
        "device": "cpu",
        "batch_labelled": batch,
        "batch_unlabelled": batch,
        "unlabelled_start": 0.0,
    }
