# SPDX-License-Identifier: Apache-2.0
"""A small sound dataset with its configuration and a model, in a folder of its own, to be spoilt in one way."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml

from scripts.networks.vnet import VNet

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (18, 17, 16)
AFFINE = np.array([[1.5, 0, 0, -11], [0, 2, 0, 23.5], [0, 0, 2.5, 40.25], [0, 0, 0, 1.0]])
LABELLED, UNLABELLED, VALIDATION, TEST = ("l0", "l1", "l2"), ("u0",), ("v0",), ("t0", "t1")
SETTINGS = {
    "dataset_name": "mine", "data_source": "@dataset_dir", "datalist": "dataset.json", "labelled_cases": 3,
    "label_names": ["background", "organ", "vessel"], "spacing": [1.5, 2.0, 2.5], "roi_size": [32, 16, 16],
    "batch_labelled": 1, "batch_unlabelled": 1, "base_filters": 4, "max_steps": 1, "unlabelled_start": 0.0,
    "precision": "fp32", "device": "cpu",
}  # fmt: skip


class Ground:
    """`data/` with `dataset.json`, `images/`, `labels/`; `mine.yaml`; `models/model.pt`; `out/` for what is written.

    Args:
        folder: of this input.
        command: that will meet it.
        seed: of `draw`, from which all that varies in a kind is drawn.
    """

    def __init__(self, folder: Path, command: str, seed: int) -> None:
        self.folder, self.command, self.seed = folder, command, seed
        self.draw = random.Random(seed)
        self.data, self.models, self.out = folder / "data", folder / "models", folder / "out"
        self.config = folder / "mine.yaml"
        self.configs: list[str] = [str(self.config)]
        self.run_id: str | None = None
        self.images: Path | None = None  # what inference runs on, by default data/images
        self.more: list[str] = []  # further words of the command line
        self.settings: dict[str, Any] = {**SETTINGS, "dataset_dir": str(self.data)}
        self.lists: dict[str, Any] = json.loads((self.data / "dataset.json").read_text(encoding="utf-8"))

    def image(self, name: str) -> Path:
        """File of a case's image."""
        return self.data / "images" / f"{name}.nii.gz"

    def label(self, name: str) -> Path:
        """File of a case's label."""
        return self.data / "labels" / f"{name}.nii.gz"

    def victim(self) -> str:
        """A case whose image and label the command reads."""
        return self.draw.choice(TEST if self.command == "evaluating" else LABELLED)

    def keep(self) -> None:
        """Write `mine.yaml` and `dataset.json` where a kind has not written them itself."""
        if not self.config.exists():
            self.config.write_text(yaml.safe_dump(self.settings, allow_unicode=True), encoding="utf-8")
        listed = self.data / "dataset.json"
        if self.data.is_dir() and self.lists and listed.is_file():
            listed.write_text(json.dumps(self.lists, ensure_ascii=False), encoding="utf-8")


def entry(name: str) -> dict[str, str]:
    """A case as `dataset.json` lists it."""
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write voxels `(X, Y, Z)` or `(X, Y, Z, channels)` as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def intensities(number: int) -> np.ndarray:
    """Voxels of a sound image."""
    return np.random.default_rng(number).integers(-50, 200, SHAPE).astype(np.int16)


def classes() -> np.ndarray:
    """Voxels of a sound label: 0, 1, 2."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:12, 4:11, 5:9] = 1
    label[6:9, 6:8, 10:14] = 2
    return label


def weights(base_filters: int = 4, out_channels: int = 3) -> dict[str, torch.Tensor]:
    """A state dict of the network that the settings describe, or of another."""
    torch.manual_seed(0)
    return VNet(1, out_channels, base_filters=base_filters, norm="instance").state_dict()


def make_sound(folder: Path) -> Path:
    """Write the sound folder that every input starts from."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate((*LABELLED, *UNLABELLED, *VALIDATION, *TEST)):
        save(folder / "data/images" / f"{name}.nii.gz", intensities(number))
        if name not in UNLABELLED:
            save(folder / "data/labels" / f"{name}.nii.gz", classes())
    lists = {
        "training": [*map(entry, LABELLED), {"image": "images/u0.nii.gz"}],
        "validation": [*map(entry, VALIDATION)],
        "test": [*map(entry, TEST)],
    }
    (folder / "data/dataset.json").write_text(json.dumps(lists), encoding="utf-8")
    (folder / "models").mkdir()
    torch.save(weights(), folder / "models/model.pt")
    return folder


def ground_from(sound: Path, folder: Path, command: str, seed: int) -> Ground:
    """A copy of the sound folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    return Ground(folder, command, seed)
