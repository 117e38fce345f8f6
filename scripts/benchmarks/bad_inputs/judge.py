# SPDX-License-Identifier: Apache-2.0
"""Whether a command met a bad input as it should: by exit code, what it said first, and what it left."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import nibabel
import numpy as np

from scripts.benchmarks.bad_inputs.ground import Ground
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, EXPORT, INFER, NEW, TRAIN, Kind
from scripts.benchmarks.forked_command import Finished
from scripts.data.find import find_images
from scripts.images.read import read_header

REFUSED, RIGHT, MONAI = "refused in one sentence", "right result", "MONAI's own message"
FINISHED = {
    TRAIN: ("models/model.pt", "models/model_best.pt"),
    EVALUATE: ("out/*metrics.csv", "out/*summary.json"),
    INFER: ("out/*_seg.nii.gz",),
    CHECK: (),
    NEW: ("out/*dataset.json", "out/*mine.yaml"),
    EXPORT: ("out/model.ts",),
}
"""What each command leaves when it has done its work."""

Listing = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Verdict:
    """`outcome` is `REFUSED`, `RIGHT`, `MONAI`, or says what is wrong."""

    outcome: str
    sentence: str

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.outcome in (REFUSED, RIGHT, MONAI)


def listing(folder: Path, without: tuple[str, ...] = ()) -> Listing:
    """Size and time of change of every file below a folder, links not followed.

    Args:
        folder: where to begin.
        without: beginnings of relative names that are passed over; folders among them are not entered.
    """
    found = {}
    for home, inner, names in os.walk(folder):
        place = Path(home).relative_to(folder)
        inner[:] = [name for name in inner if not (place / name).as_posix().startswith(without)]
        for name in names:
            relative = (place / name).as_posix()
            if not relative.startswith(without):
                state = os.lstat(folder / relative)
                found[relative] = (state.st_size, state.st_mtime_ns)
    return found


def judge(kind: Kind, ground: Ground, named: str, done: Finished, before: Listing) -> Verdict:
    """Hold what a command did against what its kind of input demands.

    Args:
        kind: of the input.
        ground: its folder, after the command.
        named: file or key that a refusal must name.
        done: how the command ended.
        before: `listing` of the folder before it.
    """
    said = [line for line in done.errors.splitlines() if line.strip()]
    sentence = said[-1] if said else ""
    after = listing(ground.folder)
    new = [name for name in after if after[name] != before.get(name)]
    finished = [name for name in new if any(fnmatch(name, pattern) for pattern in FINISHED[ground.command])]
    touched = changed(before, after)
    if ground.command == INFER and "cases failed" in sentence:  # the others are written, as they should be
        told = _told_by_table(ground.out / "failed.csv", named)
        finished = [name for name in finished if told and name.endswith(f"/{told.split(',')[0]}_seg.nii.gz")]
        sentence = told and f"Error: {told}"
    if done.code is None:
        return Verdict("took too long", sentence)
    if touched:
        return Verdict(f"changed {touched[0]}", sentence)
    if ground.command in kind.right:
        outcome = _right(ground, done, finished)
        return Verdict(outcome, "" if outcome == RIGHT else sentence)
    if done.code == 0:
        return Verdict("ended with 0", sentence)
    if finished:
        return Verdict(f"left {finished[0]}", sentence)
    if ground.command in kind.monai:
        return Verdict(_format(kind.monai[ground.command], named, sentence) or MONAI, sentence)
    if "Traceback" in done.errors:
        return Verdict("a traceback", sentence)
    if not re.match(r"Error: |.*: error: ", sentence):
        return Verdict("no sentence at the end", sentence)
    if ground.command == CHECK and "would harm training" in sentence:
        sentence = _told_by_table(ground.out / "check_data.csv", named)
    return Verdict(_format(kind.refused[ground.command], named, sentence) or REFUSED, sentence)


def changed(before: Listing, after: Listing) -> list[str]:
    """Files that a command has changed, removed or made outside of the folders that it writes to."""
    allowed = ("out/", "models/", "stdout.txt", "stderr.txt")
    names = before.keys() | after.keys()
    return sorted(n for n in names if before.get(n) != after.get(n) and not n.startswith(allowed))


def _format(words: str, named: str, sentence: str) -> str:
    if named not in sentence:
        return f"does not name {named}"
    return "" if re.search(words, sentence) else f"does not say: {words}"


def _told_by_table(table: Path, named: str) -> str:
    """The line of a table about the input."""
    lines = table.read_text(encoding="utf-8").splitlines()[1:]
    return next((line for line in lines if named in line), "")


def _right(ground: Ground, done: Finished, finished: list[str]) -> str:
    if done.code != 0:
        return f"ended with {done.code}"
    if "Traceback" in done.errors:
        return "a traceback"
    expected = FINISHED[ground.command]
    if ground.command == INFER:
        return _one_label_volume_an_image(ground)
    return RIGHT if len(finished) >= min(1, len(expected)) else f"did not write {expected[0]}"


def _one_label_volume_an_image(ground: Ground) -> str:
    """Each image has its label volume, on the same grid and of declared values, and there is nothing else."""
    images = find_images(ground.images or ground.data / "images")
    outputs = sorted(ground.out.glob("*_seg.nii.gz"))
    if len(images) != len(outputs):
        return f"{len(images)} images have {len(outputs)} label volumes"
    grids = sorted((read_header(image).shape, read_header(image).affine.round(3).tolist()) for image in images)
    written = [nibabel.load(output) for output in outputs]
    if grids != sorted((volume.shape, (volume.affine.round(3) + 0.0).tolist()) for volume in written):
        return "a label volume is not on the grid of its image"
    values = set(np.unique([value for volume in written for value in np.unique(volume.dataobj)]).tolist())
    return RIGHT if values <= {0, 1, 2} else f"label volumes hold {values}"
