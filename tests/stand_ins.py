# SPDX-License-Identifier: Apache-2.0
"""Tiny volumes in the form of public downloads: their names of files, channels, label values and spacing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.volume_files import save

SHAPE = (36, 22, 18)
COLUMNS = 7  # of blocks, each a structure, in two rows


def affine_of(config: dict) -> np.ndarray:
    return np.diag([*config["spacing"], 1.0])


def case(config: dict, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Channels and label of one case of a dataset's YAML: every structure a block that is brighter than the last."""
    draw = np.random.default_rng(seed)
    count = len(config["label_names"])
    values = config.get("label_values") or list(range(count))
    classes = np.zeros(SHAPE, int)
    for c in range(1, count):
        row, column = divmod(c - 1, COLUMNS)
        x, y = 1 + 5 * column, 1 + 11 * row
        classes[x : x + 4, y : y + 9, 2:15] = c
    low, high = (config["intensity"].get(key, default) for key, default in (("a_min", 0), ("a_max", 400)))
    bright = low + (high - low) * (classes + 1) / (count + 1)
    channels = [bright * (1 + 0.1 * k) + draw.normal(0, 5, SHAPE) for k in range(config["in_channels"])]
    label = np.zeros(SHAPE, np.uint8)
    for c, value in enumerate(values):
        # A class of several values has each of them, in slices of its own.
        stored = value if isinstance(value, list) else [value]
        label[classes == c] = np.broadcast_to(np.resize(stored, SHAPE[2]), SHAPE)[classes == c]
    return [channel.astype(np.int16) for channel in channels], label


def listed(folder: Path, config: dict) -> None:
    """Images, labels and the datalist that the YAML names."""
    entries = []
    for n in range(4):
        channels, label = case(config, n)
        images = [f"images/{n}_{k}.nii.gz" for k in range(len(channels))]
        for name, array in zip([*images, f"labels/{n}.nii.gz"], [*channels, label], strict=True):
            save(folder / name, array, affine_of(config))
        entries.append({"image": images, "label": f"labels/{n}.nii.gz"})
    (folder / config["datalist"]).write_text(json.dumps({"training": entries[:3], "test": entries[3:]}))


def decathlon(folder: Path, config: dict) -> None:
    """imagesTr, labelsTr, imagesTs and a `dataset.json` whose test cases have no label."""
    names = [f"case_{n:03d}.nii.gz" for n in range(6)]
    for n, name in enumerate(names):
        (image,), label = case(config, n)
        save(folder / ("imagesTs" if n == 5 else "imagesTr") / name, image, affine_of(config))
        if n < 5:
            save(folder / "labelsTr" / name, label, affine_of(config))
    modality = "CT" if "a_min" in config["intensity"] else "MRI"
    content = {
        "name": folder.name,
        "tensorImageSize": "3D",
        "modality": {"0": modality},
        "labels": {str(n): name for n, name in enumerate(config["label_names"])},
        "numTraining": 5,
        "numTest": 1,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:5]],
        "test": [f"./imagesTs/{name}" for name in names[5:]],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def brats(folder: Path, config: dict) -> None:
    """HGG and LGG, a folder for each case, four contrasts and `_seg` in it."""
    for n in range(5 if config["in_channels"] == 4 else 65):
        name = f"BraTS19_TST_{n}_1"
        home = folder / ("HGG" if n < 3 else "LGG") / name
        channels, label = case({**config, "in_channels": 4}, n)
        for contrast, array in zip(("t1", "t1ce", "t2", "flair"), channels, strict=True):
            save(home / f"{name}_{contrast}.nii.gz", array, affine_of(config))
        save(home / f"{name}_seg.nii.gz", label, affine_of(config))


def numbered(images: str, labels: str, cases: int) -> Callable[[Path, dict], None]:
    """Files named by a word and a number, in two folders."""

    def write(folder: Path, config: dict) -> None:
        for n in range(1, cases + 1):
            (image,), label = case(config, n)
            save(folder / images.format(n), image, affine_of(config))
            save(folder / labels.format(n), label, affine_of(config))

    return write


def challenge(folder: Path, config: dict) -> None:
    """The left atrium's folders, labels 0 and 255, and UA-MT's lists."""
    names = [f"CASE{n}" for n in range(4)]
    for n, name in enumerate(names):
        (image,), label = case(config, n)
        save(folder / name / "lgemri.nrrd", image.clip(0, 255).astype(np.uint8), affine_of(config))
        save(folder / name / "laendo.nrrd", 255 * label, affine_of(config))
    (folder / "train.list").write_text("\n".join(names[:3]))
    (folder / "test.list").write_text(names[3])


LAYOUTS = {
    "heart": decathlon,
    "spleen": decathlon,
    "pancreas": decathlon,
    "brats2019": brats,
    "brats2019_whole": brats,
    "btcv": numbered("img/img{:04d}.nii.gz", "label/label{:04d}.nii.gz", 5),
    "nih_pancreas": numbered("images/{:04d}.nii.gz", "labels/label{:04d}.nii.gz", 22),
    "left_atrium_full": challenge,
}
"""Of downloads for which the YAML names a command; the others have a datalist already."""
