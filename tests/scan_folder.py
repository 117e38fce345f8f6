# SPDX-License-Identifier: Apache-2.0
"""A folder of small images and labels for `new-dataset`."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.dataset_setup.plan import Machine
from scripts.errors import UserError

MACHINE = Machine("cpu", 2**33)
SHAPE = (20, 18, 16)


def volume(path: Path, seed: int = 0, air: float = 0.0, classes: tuple[int, ...] | None = None) -> None:
    """Write an image with a bright box, or with `classes` a label with one box per value."""
    rng = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.int16)
    if classes is None:
        array[:] = rng.integers(0, 20, SHAPE) + air
        array[4:14, 4:12, 4:12] = rng.integers(100, 200, (10, 8, 8))
    else:
        for number, value in enumerate(classes):
            array[4 + 5 * number : 9 + 5 * number, 4:12, 4:12] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 2.0, 1.0])), path)


def make_folder(folder: Path, labelled: int = 5, unlabelled: int = 3, classes: tuple[int, ...] = (1,), **image) -> Path:
    """`images` and `labels` with the cases `c0`, `c1`, ...; the first `labelled` cases have a label."""
    for n in range(labelled + unlabelled):
        volume(folder / "images" / f"c{n}.nii.gz", seed=n, **image)
        if n < labelled:
            volume(folder / "labels" / f"c{n}.nii.gz", classes=classes)
    return folder


def refusal(call, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
