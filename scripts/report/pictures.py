# SPDX-License-Identifier: Apache-2.0
"""Pictures of a case: slices in three planes, with contours as SVG paths.

A slice is a small WebP picture, and its contours are paths that the browser draws over it, so that they are sharp at
any size and can be switched on and off. Volumes are reoriented to RAS without resampling. As radiologists expect, the
patient's right is on the left of axial and coronal pictures, the front is on the left of sagittal pictures, and the
head is at the top.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import ndimage

PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "APSI")}
"""Axis (R, A or S) perpendicular to each plane, and the directions at the left, right, top and bottom of a picture."""

MARGIN_MM = 20.0
"""Margin that is shown around the structures."""

LARGEST_SIDE = 320
"""Maximum side of a picture in pixels; larger pictures are reduced, but their contours are not."""

SLICES = 24
"""Maximum number of slices per plane."""

QUALITY = 55
"""Quality of the WebP pictures, 0 to 100."""

SCALE_MM = 2.0
"""Standard deviation of the Gaussian that smooths the errors to find the largest one."""

UNCERTAIN = (0.25, 0.5, 0.75)
"""Levels of uncertainty (entropy from 0 to 1) that are drawn if there is no reference."""


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case on one grid, in RAS.

    Attributes:
        spacing: voxel size along R, A, S in mm.
        prediction: classes `(R, A, S)` from 0.
        reference: the same for the reference, or `None`.
        image: intensities on the same grid, or `None`.
        uncertainty: entropy from 0 to 1, or `None`.
    """

    spacing: tuple[float, float, float]
    prediction: np.ndarray
    reference: np.ndarray | None = None
    image: np.ndarray | None = None
    uncertainty: np.ndarray | None = None

    @property
    def foreground(self) -> np.ndarray:
        """Return a bool mask of the voxels with a structure in the prediction or the reference."""
        return self.prediction > 0 if self.reference is None else (self.prediction > 0) | (self.reference > 0)


def largest_error(volumes: CaseVolumes) -> tuple[int, int, int]:
    """Return the voxel in the middle of the largest error, through which the slices are taken.

    It is the wrong voxel with the most wrong voxels around it, weighted by a Gaussian of `SCALE_MM`. Without a
    reference or an error, the uncertainty or else the structures are used in the same way; without these, it is the
    middle of the volume.
    """
    if volumes.reference is not None and (volumes.prediction != volumes.reference).any():
        weight = (volumes.prediction != volumes.reference).astype(np.float32)
    elif volumes.reference is None and volumes.uncertainty is not None and volumes.uncertainty.any():
        weight = volumes.uncertainty.astype(np.float32)
    else:
        weight = volumes.foreground.astype(np.float32)
    if not weight.any():
        r, a, s = (side // 2 for side in weight.shape)
        return r, a, s
    box = ndimage.find_objects((weight > 0).astype(np.uint8))[
        0
    ]  # all values are 1, so this is the bounding box of the whole mask
    inside = weight[box]
    gathered = ndimage.gaussian_filter(inside, [SCALE_MM / mm for mm in volumes.spacing], mode="constant", truncate=2.0)
    place = np.unravel_index(np.where(inside > 0, gathered, -1).argmax(), inside.shape)
    r, a, s = (int(index) + side.start for index, side in zip(place, box, strict=True))
    return r, a, s


def outline(mask: np.ndarray) -> str:
    """Return the outline of a mask as the data of an SVG path, in half pixels from the upper left corner.

    The outline passes midway between a pixel of the mask and a neighbour outside it (marching squares). Holes have a
    separate outline in the opposite direction.

    Args:
        mask: bool `(rows, columns)`.

    Example:
        >>> outline(np.array([[True]]))
        'M2 1l-1 -1 -1 1 1 1z'
    """
    # Imported here, because contourpy comes with matplotlib, which few commands need. `contour_generator` would choose
    # this class and these arguments, but takes three times as long, because it searches for masked values.
    from contourpy import FillType, LineType, SerialContourGenerator, ZInterp

    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if len(rows) == 0:
        return ""
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    y, x = np.indices(padded.shape, float)
    generator = SerialContourGenerator(
        x,
        y,
        padded.astype(float),
        None,  # type: ignore[arg-type]  # no mask: its annotation does not say that this is allowed
        corner_mask=False,
        line_type=LineType.Separate,
        fill_type=FillType.OuterOffset,
        quad_as_tri=False,
        z_interp=ZInterp.Linear,
    )
    parts = []
    for line in cast(list[np.ndarray], generator.lines(0.5)):
        # Crossings are at multiples of half a pixel, counted from the centre of the first padded pixel.
        points = np.rint(2 * line[:-1] - 1).astype(int) + np.array([2 * left, 2 * top])
        steps = np.diff(points, axis=0, append=points[:1])
        before = np.roll(steps, 1, axis=0)
        points = points[steps[:, 0] * before[:, 1] != steps[:, 1] * before[:, 0]]  # drop points on a straight line
        if len(points) == 0:
            continue
        moves = " ".join(f"{x} {y}" for x, y in np.diff(points, axis=0).tolist())
        parts.append(f"M{points[0, 0]} {points[0, 1]}l{moves}z")
    return "".join(parts)


def draw_case(volumes: CaseVolumes, bytes_left: int) -> list[dict[str, Any]]:
    """Draw pictures of a case in three planes, with as many slices as fit.

    Args:
        volumes: volumes of the case.
        bytes_left: maximum size of all slices together; the slice through the largest error is always included.

    Returns:
        For each plane `name`, `sides` (directions at left, right, top, bottom), `columns` and `rows` (pixels),
        `width_mm` and `height_mm`, `total` (slices of the volume), `start` (position of the slice through the largest
        error in `slices`) and `slices`: `number` (from 1, in the volume), `image` (base64 of a WebP picture, empty
        without an image) and `paths` (pairs of CSS classes and path data).
    """
    centre, box = largest_error(volumes), _shown_box(volumes)
    window = _intensity_window(volumes, box)
    planes = [_plane(volumes, name, centre, box, window) for name in PLANES]
    while sum(map(_size, planes)) > bytes_left and any(len(plane["slices"]) > 1 for plane in planes):
        for plane in planes:
            kept = list(range(plane["start"] % 2, len(plane["slices"]), 2))
            plane["slices"] = [plane["slices"][index] for index in kept]
            plane["start"] = kept.index(plane["start"])
    return planes


def _plane(
    volumes: CaseVolumes,
    name: str,
    centre: Sequence[int],
    box: Sequence[slice],
    window: tuple[float, float] | None,
) -> dict[str, Any]:
    axis, sides = PLANES[name]
    across, down = (other for other in range(3) if other != axis)
    total = volumes.prediction.shape[axis]
    step = max(1, -(-(box[axis].stop - box[axis].start) // SLICES))
    first = box[axis].start + (centre[axis] - box[axis].start) % step  # include the largest error
    numbers = list(range(first, box[axis].stop, step))

    def cut(volume: np.ndarray | None, index: int) -> np.ndarray | None:
        if volume is None:
            return None
        return np.take(volume, index, axis)[box[across], box[down]].T[::-1, ::-1]

    slices = []
    for index in numbers:
        prediction, reference = cut(volumes.prediction, index), cut(volumes.reference, index)
        assert prediction is not None
        grey = cut(volumes.image, index)
        slices.append(
            {
                "number": index + 1,
                "image": "" if grey is None or window is None else _webp(grey, window),
                "paths": list(_paths(prediction, reference, cut(volumes.uncertainty, index))),
            }
        )
    columns, rows = box[across].stop - box[across].start, box[down].stop - box[down].start
    return {
        "name": name,
        "sides": sides,
        "columns": columns,
        "rows": rows,
        "width_mm": columns * volumes.spacing[across],
        "height_mm": rows * volumes.spacing[down],
        "total": total,
        "start": numbers.index(centre[axis]),
        "slices": slices,
    }


def _paths(
    prediction: np.ndarray, reference: np.ndarray | None, uncertainty: np.ndarray | None
) -> Iterator[tuple[str, str]]:
    """Return the paths to draw over a slice, from the bottom up: errors or uncertainty as areas, then contours.

    A contour has the class `sN` of its structure, and an error the classes `eN` of the structures that it concerns.
    """
    if reference is not None:
        wrong = prediction != reference
        pairs = np.unique(np.stack([prediction[wrong], reference[wrong]]), axis=1).T.tolist()
        for of_prediction, of_reference in pairs:
            kind = "missed" if of_prediction == 0 else "extra" if of_reference == 0 else "confused"
            concerned = " ".join(f"e{number}" for number in (of_prediction, of_reference) if number > 0)
            area = (prediction == of_prediction) & (reference == of_reference)
            yield f"area {kind} {concerned}", outline(area)
    elif uncertainty is not None:
        levels = {f"area uncertain u{round(100 * level)}": uncertainty > level for level in UNCERTAIN}
        yield from ((kind, outline(area)) for kind, area in levels.items() if area.any())
    for kind, classes in (("reference", reference), ("prediction", prediction)):
        if classes is not None:
            present = [int(c) for c in np.unique(classes) if c > 0]
            yield from ((f"line {kind} s{c}", outline(classes == c)) for c in present)


def _shown_box(volumes: CaseVolumes) -> tuple[slice, slice, slice]:
    """Return the part of the volume to show: the structures with a margin, or the whole volume without structures."""
    boxes = ndimage.find_objects(volumes.foreground.astype(np.uint8))
    whole = tuple(slice(0, side) for side in volumes.prediction.shape)
    if not boxes:
        return whole[0], whole[1], whole[2]
    margins = [max(2, round(MARGIN_MM / mm)) for mm in volumes.spacing]
    shown = [
        slice(max(0, part.start - margin), min(side.stop, part.stop + margin))
        for part, margin, side in zip(boxes[0], margins, whole, strict=True)
    ]
    return shown[0], shown[1], shown[2]


def _intensity_window(volumes: CaseVolumes, box: tuple[slice, slice, slice]) -> tuple[float, float] | None:
    """Return the intensities for black and white: percentiles 1 and 99.5 of the shown part, to exclude air."""
    if volumes.image is None:
        return None
    shown = volumes.image[box]
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(shown[:: max(1, shown.size // 500_000)], [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _webp(grey: np.ndarray, window: tuple[float, float]) -> str:
    low, high = window
    with np.errstate(invalid="ignore"):
        levels = np.nan_to_num(255 * np.clip((grey - low) / (high - low), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels))
    if max(picture.size) > LARGEST_SIDE:
        factor = LARGEST_SIDE / max(picture.size)
        width, height = (max(1, round(factor * side)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=3)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _size(plane: dict[str, Any]) -> int:
    return sum(
        len(each["image"]) + sum(len(kind) + len(path) + 8 for kind, path in each["paths"]) for each in plane["slices"]
    )
