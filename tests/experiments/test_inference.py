# SPDX-License-Identifier: Apache-2.0
"""The comparison runs on small volumes, with a stand-in for the authors' code, and prints what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.experiments import inference

SMALL = ("--shape", "36", "32", "34", "--window", "32", "32", "32", "--filters", "2", "--repeats", "1")

NETWORK = """
from scripts.networks.vnet import VNet as Ours


class VNet(Ours):
    def __init__(self, n_channels, n_classes, n_filters, normalization, has_dropout):
        super().__init__(n_channels, n_classes, n_filters, "batch")

    def forward(self, image):
        return super().forward(image), None
"""
PROCEDURE = """
import h5py
import numpy as np
import torch
from medpy import metric
from skimage.measure import label


def test_single_case(model, image, stride_xy, stride_z, patch_size, num_classes=1):
    assert (stride_xy, stride_z, list(patch_size)) == (18, 4, [32, 32, 32])
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(np.pad(image, [(0, -s % 16) for s in image.shape])[None, None]).cuda())
    labels = logits.argmax(1)[0].numpy().astype(np.int)
    return labels[tuple(slice(0, s) for s in image.shape)], None
"""


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A folder with the modules and functions that the comparison uses of the authors' code."""
    for name, text in (("networks/VNet.py", NETWORK), ("utils/test_3d_patch.py", PROCEDURE)):
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "code"


def test_all_methods_are_timed_and_printed(reference, tmp_path, capsys) -> None:
    inference.main(["--reference", str(reference), *SMALL, "--json", str(tmp_path / "found.json")])
    printed, rows = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [
        *("authors, their strides", "MONAI, their strides", "ours, their strides"),
        *("MONAI, overlap 0.5", "ours, overlap 0.5"),
    ]
    assert all(row["time s"] > 0 and row["method"] in printed for row in rows)
    results = {row["method"]: row["equal voxels"] for row in rows}
    assert results["MONAI, their strides"] == pytest.approx(results["ours, their strides"], abs=0.01)


def test_strides_are_those_that_were_given() -> None:
    """MONAI computes them as int(window * (1 - overlap))."""
    for window, stride in ((112, 18), (80, 4), (112, 56), (32, 31)):
        assert int(window * (1 - inference.overlap_of(stride, window))) == stride
