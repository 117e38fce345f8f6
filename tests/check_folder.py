# SPDX-License-Identifier: Apache-2.0
"""A small sound dataset, to be spoilt in one way at a time, and what check_data says about it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.check_data import check_data
from scripts.errors import UserError
from tests.volume_files import affine, save

SHAPE = (18, 17, 16)
NAMES = ["background", "organ", "vessel"]
LABELLED, UNLABELLED, VALIDATION, TEST = ("l0", "l1", "l2", "l3"), ("u0", "u1"), ("v0",), ("t0", "t1")


class CheckFolder:
    """`dataset.json`, `images/` and `labels/` of nine cases, in which check_data finds nothing.

    Unlabelled cases stand in `training` with a label file that holds no image at all: it must never be opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root.with_name(root.name + "_output")
        self.lists = {
            "training": [self.entry(name) for name in LABELLED + UNLABELLED],
            "validation": [self.entry(name) for name in VALIDATION],
            "test": [self.entry(name) for name in TEST],
        }
        for number, name in enumerate(LABELLED + UNLABELLED + VALIDATION + TEST):
            self.save_image(name, self.intensities(number))
            self.save_label(name, self.classes())
        for name in UNLABELLED:
            self.label(name).write_bytes(b"nobody reads this")

    @staticmethod
    def entry(name: str) -> dict[str, Any]:
        return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}

    @staticmethod
    def intensities(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(-50, 200, SHAPE).astype(np.int16)

    @staticmethod
    def classes() -> np.ndarray:
        label = np.zeros(SHAPE, np.uint8)
        label[3:12, 4:11, 5:9] = 1
        label[6:9, 6:8, 10:14] = 2
        return label

    def image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.nii.gz"

    def label(self, name: str) -> Path:
        return self.root / "labels" / f"{name}.nii.gz"

    def save_image(self, name: str, array: np.ndarray, grid: np.ndarray | None = None) -> None:
        save(self.image(name), array, affine() if grid is None else grid)

    def save_label(self, name: str, array: np.ndarray, grid: np.ndarray | None = None) -> None:
        save(self.label(name), array, affine() if grid is None else grid)

    def image_of(self, name: str) -> np.ndarray:
        return np.asarray(nibabel.load(self.image(name)).dataobj)

    def check(self, **settings: Any) -> set[tuple[str, str]]:
        """(kind, case) of every finding, as the CSV has them."""
        self.run(**settings)
        return {(row["finding"], row["case"]) for row in self.rows()}

    def run(self, **settings: Any) -> tuple[str, str | None]:
        """What is printed, and the error that ends the command."""
        (self.root / "dataset.json").write_text(json.dumps(self.lists))
        given = {
            "datalist": "dataset.json", "labelled_cases": len(LABELLED), "validation_cases": 0, "in_channels": 1,
            "label_names": NAMES, "spacing": [1.5, 2.0, 2.5], "roi_size": [16, 16, 16],
        }  # fmt: skip
        shown: list[str] = []
        try:
            check_data(DatasetSpec(self.root, **{**given, **settings}), self.output, shown.append)
        except UserError as error:
            return "\n".join(shown), str(error)
        return "\n".join(shown), None

    def rows(self) -> list[dict[str, str]]:
        with (self.output / "check_data.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
