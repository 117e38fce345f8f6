# SPDX-License-Identifier: Apache-2.0
"""The demo dataset: generated abdominal phantoms in the layout of the Medical Segmentation Decathlon.

All splits are drawn from the same distribution. Tissues are painted in patient coordinates (mm, RAS: x to the
patient's right, y to the front, z to the head), which are warped at random in each case.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.errors import UserError

LABELS = {"0": "background", "1": "large organ", "2": "small organ", "3": "vessel"}
SPLITS = ("training", "validation", "test")
BASE_SHAPE, BASE_SPACING = (64, 56, 40), (1.5, 1.5, 2.0)
MIN_VOXELS = (300, 300, 150)  # minimum per class at BASE_SHAPE; scaled with the volume at other shapes

# Tissue indices. BOWEL is the first of MAX_LOOPS indices, one per loop, because each loop has its own intensity.
AIR, FAT, WALL, CAVITY, BONE, DISC, STOMACH, SPLEEN, VEIN, LARGE, CORTEX, MEDULLA, VESSEL, BOWEL = range(14)
MAX_LOOPS = 9
_LABEL_OF_TISSUE = np.zeros(BOWEL + MAX_LOOPS, np.uint8)
_LABEL_OF_TISSUE[[LARGE, CORTEX, MEDULLA, VESSEL]] = 1, 2, 2, 3


def ensure_demo_dataset(
    directory: str | Path,
    *,
    seed: int = 0,
    num_training: int = 26,
    num_validation: int = 2,
    num_test: int = 8,
    shape: Sequence[int] = BASE_SHAPE,
) -> Path:
    """Generate the demo dataset, unless `directory` already holds a `dataset.json`.

    The volumes are written to a hidden folder next to `directory`, which is renamed at the end. Therefore an
    interruption leaves no partial dataset, and several processes may call this function at the same time.

    Args:
        directory: folder for `dataset.json`, `images/` and `labels/`; it may be empty or missing.
        seed: non-negative; the same seed gives the same voxels.
        num_training: number of cases, at least 1. The voxels of a case do not depend on it.
        num_validation: number of cases, at least 0.
        num_test: number of cases, at least 0.
        shape: mean number of voxels along each axis, each at least 16. The field of view in mm stays the same.

    Returns:
        The absolute path of the dataset folder.

    Raises:
        UserError: if `directory` is a file, or a folder with files but without `dataset.json`.
        ValueError: if a count, the seed or `shape` is out of range.
    """
    target = Path(directory).expanduser().resolve()
    if num_training < 1 or min(num_validation, num_test) < 0:
        raise ValueError("the demo dataset needs at least one training case, and no count may be negative")
    if (target / "dataset.json").is_file():
        return target
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a folder for the demo dataset.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} has files but no dataset.json: choose another folder for the demo dataset.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        new = Path(scratch, "new")
        _write_dataset(new, seed, (num_training, num_validation, num_test), shape)
        try:
            new.rename(target)
        except OSError:
            if not (target / "dataset.json").is_file():  # if it exists, another process was faster
                raise
    return target


def make_demo_case(
    seed: int, split: str, index: int, shape: Sequence[int] = BASE_SHAPE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate one case of the demo dataset.

    Args:
        seed: non-negative seed of the dataset.
        split: "training", "validation" or "test"; with `index` it selects the random stream.
        index: number of the case in its split, from 0.
        shape: mean number of voxels along each axis, each at least 16; the actual sizes differ by up to 10 %.

    Returns:
        The image (int16, X x Y x Z, arbitrary units, 0 to a few thousand), the labels (uint8, same grid, values of
        `LABELS`) and the affine (4 x 4, voxel indices to mm in RAS; axes run RAS+ or, in some cases, LPS+).

    Raises:
        ValueError: if an argument is out of range.
    """
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape must be three sizes of at least 16 voxels, not {tuple(shape)}")
    rng = default_rng([seed, SPLITS.index(split), index])
    low = np.array(MIN_VOXELS) * np.prod(shape) / np.prod(BASE_SHAPE)
    # Most cases are stored as RAS, some as LPS: the first two axes are then reversed, but the patient does not move.
    step = np.multiply(BASE_SHAPE, BASE_SPACING) / shape * ((-1, -1, 1) if rng.random() < 0.3 else (1, 1, 1))
    step *= rng.uniform(0.94, 1.06, 3)
    for _ in range(50):
        size = tuple(int(n + rng.integers(-(n // 10), n // 10 + 1)) for n in shape)
        tissue = _paint_anatomy(rng, _patient_coordinates(rng, size, step))
        label = _LABEL_OF_TISSUE[tissue]
        if np.all(np.bincount(label.ravel(), minlength=4)[1:] >= low):
            break
    else:
        raise ValueError(f"no phantom with enough voxels of each class found at shape {tuple(shape)}; use a larger one")
    image = _render(rng, tissue, np.abs(step))
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -step * (np.array(size) - 1) / 2 + rng.uniform(-60, 60, 3)
    affine = affine.astype(np.float32).astype(np.float64)  # the precision of a NIfTI header
    return image, label, affine


def _smooth_field(rng: Generator, size: Sequence[int], knots: Sequence[int]) -> np.ndarray:
    """A random field of about unit variance, a cubic interpolation of `knots` random values along each axis."""
    return ndimage.zoom(rng.standard_normal(knots, dtype=np.float32), np.divide(size, knots), order=3, mode="nearest")


def _rotate(points: np.ndarray, degrees: ArrayLike) -> np.ndarray:
    return np.tensordot(Rotation.from_euler("zyx", degrees, degrees=True).as_matrix().astype(np.float32), points, 1)


def _patient_coordinates(rng: Generator, size: Sequence[int], step: np.ndarray) -> np.ndarray:
    """Coordinates (3, X, Y, Z) in mm of each voxel in the reference patient, after pose, scaling and deformation."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, step, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    points += rng.uniform((-3, -3, -8), (3, 3, 8)).astype(np.float32)[:, None, None, None]
    points = _rotate(points, rng.uniform((-12, -7, -7), (12, 7, 7)))
    points /= rng.uniform((0.85, 0.85, 0.85), (1.08, 1.08, 1.15)).astype(np.float32)[:, None, None, None]
    # Coarse deformation for the body shape, fine deformation for organs. At these amplitudes the map seldom folds.
    for knots, amplitude in (((4, 4, 4), 3.0), ((7, 6, 6), 1.3)):
        points += amplitude * np.stack([_smooth_field(rng, size, knots) for _ in range(3)])
    return points


def _organ(
    rng: Generator, points: np.ndarray, centre: ArrayLike, radii: ArrayLike, shift: float | Sequence[float] = 4
) -> np.ndarray:
    """Approximate signed distance in mm, negative inside, to an ellipsoid of random position, size and orientation."""
    centre = np.asarray(centre) + np.asarray(shift) * rng.uniform(-1, 1, 3)
    radii = np.asarray(radii) * rng.uniform(0.82, 1.2) * rng.uniform(0.85, 1.15, 3)
    offset = _rotate(points - centre.astype(np.float32)[:, None], rng.uniform(-22, 22, 3))
    offset /= radii.astype(np.float32)[:, None]
    return (np.sqrt(np.square(offset).sum(0)) - 1) * np.float32(radii.min())


def _tube(
    rng: Generator, points: np.ndarray, at: Sequence[float], radii: Sequence[float] | np.ndarray, fork: float
) -> np.ndarray:
    """Signed distance to a winding tube along z, which forks into two legs with slope `fork` below a random level."""
    x, y, z = points
    turn, sway = 2 * np.pi * z / rng.uniform(55, 90), rng.uniform(1.0, 3.0)
    x = x - at[0] - rng.uniform(-2, 2) - sway * np.sin(turn + rng.uniform(0, 6.28))
    y = y - at[1] - rng.uniform(-1.5, 1.5) - sway * np.sin(turn + rng.uniform(0, 6.28))
    x = np.abs(x) - fork * np.maximum(rng.uniform(-28, -8) - z, 0)
    return (np.hypot(x / radii[0], y / radii[1]) - 1) * min(radii)


def _paint_anatomy(rng: Generator, points: np.ndarray) -> np.ndarray:
    """Tissue indices (X, Y, Z), uint8. Tissues painted later cover earlier ones."""
    x, y, z = points
    tissue = np.full(points.shape[1:], AIR, np.uint8)
    depth = 29 * (((np.abs(x) / 33) ** 2.4 + (np.abs(y + 1) / 26) ** 2.4) ** (1 / 2.4) - 1)  # mm outside the cavity
    wall = rng.uniform(2.0, 3.5)
    tissue[depth < wall + rng.uniform(2.0, 8.0)] = FAT
    tissue[depth < wall] = WALL
    ribs = np.sin(2 * np.pi * (z + rng.uniform(0.3, 0.8) * y) / rng.uniform(13, 17) + rng.uniform(0, 6.28)) > 0.45
    tissue[ribs & (depth < wall) & (z > rng.uniform(-12, 4))] = BONE
    cavity = depth < 0
    content = np.full(np.count_nonzero(cavity), CAVITY, np.uint8)
    for index, distance in _organs(rng, points[:, cavity]):
        content[distance < 0] = index
    tissue[cavity] = content
    return tissue


def _organs(rng: Generator, points: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Tissue index and signed distance (mm) at `points` (3, N) of each class and distractor, in painting order."""
    x, y, z = points
    for number in range(rng.integers(5, MAX_LOOPS + 1)):
        yield BOWEL + number, _organ(rng, points, rng.uniform((-24, -6, -36), (24, 18, 0)), rng.permutation((5, 6, 10)))
    yield STOMACH, _organ(rng, points, (-13, 8, 10), (9, 8, 12))
    yield SPLEEN, _organ(rng, points, (-23, -4, 14), (7, 11, 13))
    main = _organ(rng, points, (18, 3, 11), (15, 17, 21))
    lobe = _organ(rng, points, (2, 10, 17), np.array((15, 8, 9)) * rng.uniform(0.6, 1.2))
    yield LARGE, -3 * np.logaddexp(-main / 3, -lobe / 3)  # a smooth union, so that the lobe grows out of the organ
    for side in (-1, 1):
        yield WALL, _organ(rng, points, (11 * side, -17, -22), (5, 5, 26), shift=1.5)  # the muscle beside the spine
        bent = np.stack([x + side * rng.uniform(0.015, 0.045) * (z + 8) ** 2, y, z])  # bean shape, poles to the spine
        bean = _organ(rng, bent, (18 * side, -14, -8 - 3 * side), (6.5, 6, 11), shift=(3, 3, 7))
        yield CORTEX, bean
        yield MEDULLA, bean + rng.uniform(2.2, 3.2)
    spine = np.hypot(x / rng.uniform(7, 9), (y + 21) / rng.uniform(6, 8)) - 1
    yield BONE, spine
    yield DISC, np.maximum(spine, 0.8 - np.sin(2 * np.pi * z / rng.uniform(14, 17) + rng.uniform(0, 6.28)))
    yield VEIN, _tube(rng, points, (7, -8), rng.uniform((3.2, 2.0), (4.8, 3.2)), fork=0.0)
    yield VESSEL, _tube(rng, points, (-3, -9), [rng.uniform(2.7, 4.0)] * 2, fork=rng.uniform(0.25, 0.55))


def _render(rng: Generator, tissue: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The image (int16) of a tissue map as a scanner would show it."""
    mean = np.zeros(BOWEL + MAX_LOOPS, np.float32)  # per tissue, 0 to 1; distractors are close to what they mimic
    mean[LARGE] = large = rng.uniform(0.5, 0.62)
    mean[CORTEX] = cortex = large + rng.uniform(-0.03, 0.14)
    mean[VESSEL] = vessel = large + rng.uniform(0.0, 0.2)
    mean[MEDULLA], mean[STOMACH] = cortex - rng.uniform(0.0, 0.1), cortex + rng.uniform(-0.1, 0.05)
    mean[WALL], mean[SPLEEN] = large + rng.uniform(-0.1, 0.02), large + rng.uniform(-0.04, 0.05)
    mean[VEIN] = vessel + rng.uniform(-0.08, 0.02)
    mean[BOWEL:] = rng.uniform(large - 0.1, max(cortex, vessel) + 0.03, MAX_LOOPS)
    mean[[AIR, FAT, CAVITY, BONE, DISC]] = rng.uniform((0.02, 0.18, 0.27, 0.66, 0.5), (0.04, 0.33, 0.4, 0.92, 0.65))
    image = mean[tissue]
    texture = ndimage.gaussian_filter(rng.standard_normal(tissue.shape, dtype=np.float32), 1.8 / spacing)
    image += (tissue != AIR) * texture * (rng.uniform(0.015, 0.045) / texture.std())
    image = ndimage.gaussian_filter(image, rng.uniform(0.8, 1.3) / spacing)  # partial volume effect of about 1 mm
    image = np.clip(image, 0, None) ** rng.uniform(0.75, 1.35)
    image *= np.exp(rng.uniform(0.05, 0.18) * _smooth_field(rng, tissue.shape, (3, 3, 3)))  # coil sensitivity
    noise = rng.uniform(0.02, 0.05) * rng.standard_normal((2, *tissue.shape), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1])  # magnitude of a complex signal: Rician noise
    return np.clip(np.rint(image * rng.uniform(500, 1500)), 0, 32767).astype(np.int16)


def _write_dataset(folder: Path, seed: int, counts: Sequence[int], shape: Sequence[int]) -> None:
    head: dict[str, Any] = {"name": "Abdominal phantom demo", "licence": "Apache-2.0", "tensorImageSize": "3D"}
    head["description"] = "Synthetic abdominal phantoms with three classes. Not patient data, of no clinical use."
    head["modality"], head["labels"] = {"0": "synthetic MR-like"}, LABELS
    for split, count in zip(SPLITS, counts, strict=True):
        names = [f"demo_{split}_{index:03d}.nii.gz" for index in range(count)]
        head[f"num{split.capitalize()}"] = count
        head[split] = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
        for index, paths in enumerate(head[split]):
            image, label, affine = make_demo_case(seed, split, index, shape)
            for path, array in ((paths["image"], image), (paths["label"], label)):
                volume = nib.Nifti1Image(array, affine)
                volume.header.set_xyzt_units("mm")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                nib.save(volume, folder / path)
    (folder / "dataset.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
