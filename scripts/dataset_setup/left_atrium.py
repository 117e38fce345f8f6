# SPDX-License-Identifier: Apache-2.0
"""Convert the public left atrium volumes to NIfTI (`python -m scripts convert-left-atrium`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec

from scripts.dataset_setup.roles import choose_tests, number_of_tests
from scripts.errors import UserError
from scripts.files import write_text
from scripts.images.read import read_volume
from scripts.images.write import write_volume
from scripts.progress import progress_bar

IMAGE, LABEL = "lgemri.nrrd", "laendo.nrrd"
UA_MT = "mri_norm2.h5"
SPACING_MM = 0.625  # spacing of every challenge volume; the .h5 files do not store it
CROP_MARGIN = 15  # voxels around the label; UA-MT draws 10 to 19 at random
CROP_LEAST = (112, 112)  # minimum voxels along the cropped axes, from UA-MT's patch size
LISTS = ("train.list", "test.list")
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Source:
    """A case to convert: a folder with the challenge's two files, or an `.h5` file."""

    name: str
    path: Path


def convert(folder: Path, output: Path, crop: bool = False, show: Callable[[str], None] = print) -> Path:
    """Write `output/images`, `output/labels` and `output/dataset.json`.

    Args:
        folder: folder that holds the cases.
        output: output folder, created if needed. It must not hold a `dataset.json`, which is written last so that an
            interrupted conversion can be started again.
        crop: whether to crop volumes around the label, see `crop_box`.
        show: function that prints the summary.

    Returns:
        Path of the datalist.

    Raises:
        UserError: for a folder without cases, duplicate cases, lists that name unknown cases, an unusable file, or an
            `output` that has a datalist; also if h5py is needed and not installed.
    """
    datalist = output / "dataset.json"
    if datalist.exists():
        raise UserError(f"{datalist} already exists: choose another folder, or delete the file.")
    sources = find_sources(folder)
    training, test, reason = split(folder, [source.name for source in sources])
    chosen = {source.name: source for source in sources}
    for part in ("images", "labels"):
        (output / part).mkdir(parents=True, exist_ok=True)
    for name in progress_bar([*training, *test], "converting"):
        _write_case(chosen[name], output, crop)
    content = {
        "name": "left_atrium",
        "labels": {"0": "background", "1": "left atrium"},
        "cropped_around_the_label": crop,
        "training": [_entry(name) for name in training],
        "test": [_entry(name) for name in test],
    }
    write_text(datalist, json.dumps(content, indent=1) + "\n")
    show(f"{len(training)} training and {len(test)} test cases written to {output}; {reason}.")
    return datalist


def find_sources(folder: Path) -> list[Source]:
    """Find the cases below a folder, sorted by name.

    Raises:
        UserError: for a folder that does not exist or holds no case, a case without label, or duplicate names.
    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.")
    sources = [Source(path.parent.name, path.parent) for path in folder.rglob(IMAGE)]
    for source in sources:
        if not (source.path / LABEL).is_file():
            raise UserError(f"{source.path} holds {IMAGE} but no {LABEL}: use the training set of the challenge.")
    sources += [Source(path.parent.name if path.name == UA_MT else path.stem, path) for path in folder.rglob("*.h5")]
    if not sources:
        raise UserError(f"{folder} holds no cases: folders with {IMAGE} and {LABEL}, or .h5 files, are needed.")
    by_name: dict[str, Source] = {}
    for source in sources:
        other = by_name.setdefault(source.name, source)
        if other is not source:
            raise UserError(f"{other.path} and {source.path} have the same case name: keep only one of them.")
    return [by_name[name] for name in sorted(by_name)]


def split(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Return training cases, test cases, and the source of the split (for the summary).

    Raises:
        UserError: if the lists name a case that does not exist, or name a case twice.
    """
    home = next((f for f in (folder, folder.absolute().parent) if all((f / name).is_file() for name in LISTS)), None)
    if home is None:
        tests = choose_tests(names, number_of_tests(len(names), TEST_FRACTION))
        training = [name for name in names if name not in tests]
        return training, sorted(tests), f"the split hashes case names, because there is no {' and '.join(LISTS)}"
    training, test = (_listed(home / name) for name in LISTS)
    twice = sorted(name for name in {*training, *test} if (training + test).count(name) > 1)
    absent = sorted({*training, *test} - {*names})
    if twice:
        raise UserError(f"The lists in {home} name the case {twice[0]} twice: name each case once.")
    if absent:
        raise UserError(
            f"The lists in {home} name {len(absent)} cases that are not in {folder}, the first is {absent[0]}: "
            "complete the download."
        )
    left_out = len(names) - len(training) - len(test)
    return training, test, f"the split is that of the lists in {home}" + (f"; {left_out} unlisted" if left_out else "")


def _listed(file: Path) -> list[str]:
    """Read case names, one per line; a slash and the text after it are dropped."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [line.strip().split("/")[0] for line in lines if line.strip()]


def crop_box(label: np.ndarray) -> tuple[slice, slice, slice]:
    """Compute the crop around the label along the first two axes, as in published work.

    The extent of the label is widened to `CROP_LEAST`, then by `CROP_MARGIN` voxels at each end, and clipped to the
    volume.

    Args:
        label: `(X, Y, Z)`, with at least one foreground voxel.
    """
    box = []
    for axis, least in enumerate(CROP_LEAST):
        inside = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = int(inside[0]), int(inside[-1])
        margin = CROP_MARGIN + max(0, least - (last - first + 1)) // 2
        box.append(slice(max(0, first - margin), min(label.shape[axis], last + 1 + margin)))
    return (box[0], box[1], slice(0, label.shape[2]))


def _write_case(source: Source, output: Path, crop: bool) -> None:
    image, label, affine = _read_h5(source.path) if source.path.suffix == ".h5" else _read_nrrd(source.path)
    values = np.unique(label)
    if image.shape != label.shape or image.ndim != 3:
        raise UserError(
            f"{source.path} has an image of {image.shape} and a label of {label.shape}: they must be 3D and equal."
        )
    if not np.isin(values, (0, 1, 255)).all() or len(values) > 2:
        raise UserError(f"The label of {source.path} holds {values[:5].tolist()}, but only 0 and 1 or 255 are allowed.")
    label = (label > 0).astype(np.uint8)
    if crop:
        if not label.any():
            raise UserError(f"The label of {source.path} is empty, so --crop cannot be used.")
        box = crop_box(label)
        image, label = image[box], label[box]
        affine = affine @ from_matvec(np.eye(3), [side.start for side in box])
    for part, array in (("images", image), ("labels", label)):
        write_volume(output / part / f"{source.name}.nii.gz", array, affine)


def _read_nrrd(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    header, image = read_volume(folder / IMAGE)
    _, label = read_volume(folder / LABEL)
    return image[0], label[0], header.affine


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        import h5py  # not in requirements.txt, because only this command needs it
    except ImportError as error:
        raise UserError(f"Reading {path.name} needs h5py: run pip install h5py.") from error
    try:
        with h5py.File(path, "r") as file:
            image, label = np.asarray(file["image"]), np.asarray(file["label"])
    except (OSError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as an HDF5 file with `image` and `label` ({error}): it may be incomplete."
        ) from error
    # The files do not store an orientation, so voxels are written in the order of the file.
    return image.astype(np.float32), label, np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])


def _entry(name: str) -> dict[str, str]:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
