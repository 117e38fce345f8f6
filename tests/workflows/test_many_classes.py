# SPDX-License-Identifier: Apache-2.0
"""Thirteen structures, most of them missing from most patches, three of them rare."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

NAMES = ["background", *(f"organ {c}" for c in range(1, 11)), *(f"rare {c}" for c in range(11, 14))]
SHAPE = (48, 34, 18)
LACKS = {0: {11, 12}, 1: {13}, 2: set(), 3: {1, 13}}
"""Structures that a case does not have: of the labelled ones, 0 and 1, none has all three rare structures."""


@pytest.fixture(scope="module")
def organs(tmp_path_factory) -> Path:
    """Blocks of 4 x 12 x 14 voxels, each structure bright in a channel of its own; the rare ones have 4 x 6 x 6."""
    folder, draw = tmp_path_factory.mktemp("organs"), np.random.default_rng(0)

    def write(name, array):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.5, 2.0, 1.0])), folder / name)
        return name

    def case(number):
        label = np.zeros(SHAPE, np.uint8)
        for c in {*range(1, len(NAMES))} - LACKS[number]:
            row, column = divmod(c - 1, 7)
            x, y = 3 + 6 * column, 3 + 16 * row
            size = (4, 6, 6) if c > 10 else (4, 12, 14)
            label[tuple(slice(a, a + n) for a, n in zip((x, y, 2), size, strict=True))] = c
        channels = [(label == c) + draw.normal(0, 0.05, SHAPE) for c in range(1, len(NAMES))]
        image = np.stack(channels, axis=-1)
        return {
            "image": write(f"{number}.nii.gz", image.astype(np.float32)),
            "label": write(f"{number}_label.nii.gz", label),
        }

    cases = [case(number) for number in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"training": cases[:3], "test": cases[3:]}))
    return folder


def voxelwise_network(num_classes: int) -> str:
    """Every structure has a channel of its own, so that a network without neighbourhoods learns it in seconds."""
    layers = f"torch.nn.Conv3d(13, 32, 1), torch.nn.ReLU(), torch.nn.Conv3d(32, {num_classes}, 1)"
    return f"$torch.nn.Sequential({layers})"


def test_thirteen_classes_train_fill_the_memory_and_are_reported_one_by_one(organs, make_workflow, tmp_path) -> None:
    options = {
        "dataset_dir": str(organs),
        "in_channels": 13,
        "intensity": {"_target_": "Identityd", "keys": "image"},
        "label_names": NAMES,
        "labelled_cases": 2,
        "spacing": [1.0, 1.5, 2.0],
        "roi_size": [16, 16, 16],
        "network_def": voxelwise_network(len(NAMES)),
        "feature_layer": "1",
        "feature_channels": 32,
        "deep_layers": {},
        "network_terms": {},
        "learning_rate": 0.05,
        "learning_rate_curve#warmup": 5,
        "teacher_decay": 0.9,
        "batch_labelled": 2,
        "max_steps": 120,
        "train#spatial_transforms#1#prob": 0,
        "train#spatial_transforms#1#elastic_prob": 0,
        "train#intensity_transforms": [],
    }
    workflow = make_workflow("train.yaml", "methods/copy_paste_contrast.yaml", **options)
    loader = iter(workflow.parser.get_parsed_content("train::dataloader"))
    assert all(len(next(loader)["label"].unique()) < 14 for _ in range(3)), "every class is in every batch"
    workflow.run()
    stored = workflow.parser.get_parsed_content("memory").summary()
    assert all(stored[c] > 0 for c in range(1, 14)), stored

    make_workflow("train.yaml", "evaluate.yaml", run_id="evaluating", **options).run()
    per_class = json.loads((tmp_path / "out/summary.json").read_text())["per_class"]
    assert list(per_class) == NAMES[1:]
    for c, (name, values) in enumerate(per_class.items(), start=1):
        there = c not in LACKS[3]
        assert values["num_cases"] == int(there or values["false_positives"] > 0), name
        assert not there or values["mean_dice"] > 0.5, (name, values)
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [row["class"] for row in rows] == NAMES[1:]
