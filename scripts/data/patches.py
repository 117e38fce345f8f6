# SPDX-License-Identifier: Apache-2.0
"""Training patches: crop, rotation, scale, shear, elastic deformation and mirroring in a single resampling.

MONAI crops first and then transforms the crop (`RandAffined`), so the corners of a rotated patch hold reflections, and
its elastic transforms smooth noise at full resolution. Here each voxel of a patch is sampled directly from the whole
volume. Outside the volume, edge values are repeated in images and labels, as in the sliding windows of validation and
inference (`padding_mode: replicate`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.transforms.utils import (
    create_rotate,
    create_scale,
    create_shear,
    generate_label_classes_crop_centers,
)
from monai.utils import ensure_tuple_rep
from torch.nn import functional

from scripts.data.intensities import along_axes
from scripts.data.spec import with_name

NODES = 4
"""Number of intervals of the control grid for elastic deformation along the longest side of a patch."""

SPLINE_SD = (151 / 315) ** 1.5
"""Standard deviation of a cubic B-spline in three dimensions whose coefficients are white noise of unit variance: the
integral of its squared kernel is 151 / 315."""


class RandPatchd(Randomizable, MapTransform):
    """Draw a patch at a random position of a volume, with random geometric augmentation.

    Each patch is rotated, scaled and sheared with probability `prob`, deformed with `elastic_prob`, and mirrored with
    `flip_prob` along each axis. Without any of these, the patch is an exact crop. Rotations and deformations act in
    millimetres, so that rotating anisotropic voxels does not shear the anatomy.

    If the item has lists of voxels, one per class (MONAI's `ClassesToIndicesd`), a class is drawn, and one of its
    voxels becomes the centre of the patch. The patch is shifted if it would extend beyond the volume. Without such
    lists, the position is drawn uniformly. Along an axis on which the volume is smaller than the patch, the volume is
    centred. `jitter` then shifts the patch by some voxels, also beyond the volume, so that a patch as large as the
    volume has no fixed position.

    Args:
        keys: volumes `(C, D, H, W)` on one grid. Items of the result are plain tensors `(C, *patch_size)`, and get a
            name, `case`, if they have none.
        patch_size: size of the patch in voxels.
        spacing: voxel size in mm.
        mode: `bilinear` (trilinear, float32) or `nearest` (the values and type of the volume), for each key.
        class_voxels: key of the lists of voxels. Positions are uniform if it is `None` or an item does not have it.
        jitter: maximum shift of the position along each axis, as a fraction of the patch's side.
        prob: probability of rotation, scale and shear together.
        rotate: maximum angle in radians; one number, or one for each axis of rotation.
        scale: maximum enlargement, above 0; 0.25 draws factors from 1 / 1.25 to 1.25, uniformly in their logarithm.
        anisotropy: as `scale`, for an additional factor of each axis.
        shear: maximum shear between two axes.
        elastic_prob: probability of elastic deformation.
        elastic: maximum strength of the deformation: the standard deviation of the displacement, as a fraction of the
            distance between control points, which is a quarter of the patch's longest side. Up to 0.1 the deformation
            does not fold.
        flip_axes: axes along which the patch may be mirrored.
        flip_prob: probability of mirroring along each of these axes.
        allow_missing_keys: whether items may lack some of the keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        mode: str | Sequence[str] = ("bilinear", "nearest"),
        class_voxels: str | None = "label_cls_indices",
        jitter: float = 0.0,
        prob: float = 0.5,
        rotate: float | Sequence[float] = 0.0,
        scale: float = 0.0,
        anisotropy: float = 0.0,
        shear: float = 0.0,
        elastic_prob: float = 0.0,
        elastic: float = 0.0,
        flip_axes: Sequence[int] = (),
        flip_prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.modes = ensure_tuple_rep(mode, len(self.keys))
        self.patch_size = tuple(patch_size)
        self.spacing = np.asarray(spacing, float)
        self.class_voxels = class_voxels
        self.reach = [int(jitter * side) for side in self.patch_size]
        self.prob, self.rotate, self.shear = prob, np.broadcast_to(rotate, 3), shear
        self.scale, self.anisotropy = math.log1p(scale), math.log1p(anisotropy)
        self.elastic_prob, self.elastic = elastic_prob, elastic
        self.flip_axes, self.flip_prob = tuple(flip_axes), flip_prob
        extent = (np.array(self.patch_size) - 1) * self.spacing
        self.node_distance = max(float(extent.max()), float(self.spacing.max())) / NODES
        self.intervals = [max(1, round(side / self.node_distance)) for side in extent.tolist()]
        self.start: list[int] = []
        self.affine: np.ndarray | None = None
        self.displacement: np.ndarray | None = None
        self.flips: list[int] = []

    def randomize(self, shape: Sequence[int], class_voxels: Sequence[torch.Tensor] | None = None) -> None:
        """Draw the position of the patch, `start` (its first voxel before augmentation), and the augmentation.

        Args:
            shape: size of the volume in voxels.
            class_voxels: flat indices of voxels of each class; with `None` the position is drawn uniformly.
        """
        start = self._draw_start(shape, class_voxels)
        self.start = [first + int(self.R.randint(-r, r + 1)) for first, r in zip(start, self.reach, strict=True)]
        self.affine = self._draw_affine() if self.R.random_sample() < self.prob else None
        self.displacement = self._draw_displacement() if self.R.random_sample() < self.elastic_prob else None
        self.flips = [axis + 1 for axis in self.flip_axes if self.R.random_sample() < self.flip_prob]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with patches in place of volumes, and without the lists of voxels."""
        result = with_name(data)  # first, because plain tensors lose the metadata
        class_voxels = result.pop(self.class_voxels, None)
        volumes = [(key, mode, data[key]) for key, mode in self.key_iterator(data, self.modes)]
        shape = tuple(volumes[0][2].shape[1:])
        self.randomize(shape, class_voxels)
        grid = None if self.affine is None and self.displacement is None else self._sampling_grid(shape)
        for key, mode, volume in volumes:
            plain = torch.as_tensor(volume).as_subclass(torch.Tensor)
            plain = plain if mode == "nearest" else plain.float()
            patch = _crop(plain, self.start, self.patch_size) if grid is None else _sample(plain, grid, mode)
            result[key] = patch.flip(self.flips).contiguous()
        return result

    def _draw_start(self, shape: Sequence[int], class_voxels: Sequence[torch.Tensor] | None) -> list[int]:
        start = [
            self.R.randint(side - patch + 1) if side >= patch else -((patch - side) // 2)
            for side, patch in zip(shape, self.patch_size, strict=True)
        ]
        if class_voxels is None or not any(len(voxels) for voxels in class_voxels):
            return start
        (centre,) = generate_label_classes_crop_centers(
            self.patch_size, 1, shape, class_voxels, rand_state=self.R, allow_smaller=True, warn=False
        )
        return [
            first if side < patch else int(middle) - patch // 2
            for first, side, patch, middle in zip(start, shape, self.patch_size, centre, strict=True)
        ]

    def _draw_affine(self) -> np.ndarray:
        """Draw the matrix that maps offsets in the patch to offsets in the volume, in mm from the patch's centre."""
        angles = self.R.uniform(-self.rotate, self.rotate)
        first, second, third = self.R.uniform(-self.shear, self.shear, 3)
        factors = np.exp(self.R.uniform(-self.scale, self.scale) + self.R.uniform(-self.anisotropy, self.anisotropy, 3))
        # A rotation times an upper triangular and a diagonal matrix: by QR decomposition every linear map without
        # reflection has this form.
        matrix = create_rotate(3, angles) @ create_shear(3, (first, second, 0.0, third)) @ create_scale(3, factors)
        return np.asarray(matrix)[:3, :3]

    def _draw_displacement(self) -> np.ndarray:
        """Draw the displacement's B-spline coefficients in mm, with a margin of nodes: `(*(intervals + 3), 3)`."""
        strength = self.R.uniform(0, self.elastic) * self.node_distance / SPLINE_SD
        return strength * self.R.standard_normal((*(n + 3 for n in self.intervals), 3))

    def _sampling_grid(self, shape: Sequence[int]) -> torch.Tensor:
        """Compute the source position of each voxel of the patch, `(*patch_size, 3)`, in the format of `grid_sample`.

        Affine positions are linear along each axis, so a spline with a few control points represents them exactly, as
        it does the deformation. The fine grid is therefore the product of the control points with three small matrices.
        """
        intervals = [1, 1, 1] if self.displacement is None else self.intervals
        weights = [_spline_weights(side, n) for side, n in zip(self.patch_size, intervals, strict=True)]
        sides = np.array(self.patch_size)
        steps = (sides - 1) / intervals  # voxels between nodes
        axes = [(np.arange(-1, n + 2) - n / 2) * step for n, step in zip(intervals, steps, strict=True)]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) * self.spacing
        if self.affine is not None:
            nodes = nodes @ self.affine.T
        if self.displacement is not None:
            nodes = nodes + self.displacement
        voxels = nodes / self.spacing + np.array(self.start) + (sides - 1) / 2
        control = torch.from_numpy(((2 * voxels + 1) / np.array(shape) - 1)[..., ::-1].astype(np.float32)).permute(
            3, 0, 1, 2
        )
        return along_axes(control, weights).permute(1, 2, 3, 0)


@lru_cache
def _spline_weights(points: int, intervals: int) -> torch.Tensor:
    """Weights of the `intervals + 3` coefficients of a uniform cubic B-spline at evenly spaced points."""
    position = torch.arange(points, dtype=torch.float64) * (intervals / max(1, points - 1))
    cell = position.floor().clamp(max=intervals - 1)
    t = position - cell
    kernel = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1) / 6
    weights = torch.zeros(points, intervals + 3, dtype=torch.float64)
    return weights.scatter_(1, cell.long()[:, None] + torch.arange(4), kernel).float()


def _crop(volume: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Crop a volume to `(C, *size)`; outside the volume, edge values are repeated."""
    for axis, (first, length) in enumerate(zip(start, size, strict=True), 1):
        side = volume.shape[axis]
        if first >= 0 and first + length <= side:
            volume = volume.narrow(axis, first, length)
        else:
            volume = volume.index_select(axis, torch.arange(first, first + length).clamp_(0, side - 1))
    return volume


def _sample(volume: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    if mode != "nearest":
        return functional.grid_sample(volume[None], grid[None], mode, "border", align_corners=False)[0]
    # Indexing keeps the type and reads only the part of a volume on disk that the patch needs; grid_sample would need
    # the whole volume as float32.
    index = torch.zeros(grid.shape[:-1], dtype=torch.int64)
    for axis, side in enumerate(volume.shape[1:]):
        place = grid[..., 2 - axis].mul(side / 2).add_((side - 1) / 2).round_().clamp_(0, side - 1)
        index.mul_(side).add_(place.long())
    return volume.flatten(1)[:, index]
