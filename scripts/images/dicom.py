# SPDX-License-Identifier: Apache-2.0
"""Read a folder of DICOM slices as one volume, with ITK's GDCM; multi-frame files are read with pydicom.

A series becomes a volume only if its slices are parallel, aligned and evenly spaced; otherwise an error names the
problem. GDCM's series reader would assemble any series, with at most a line on stderr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scripts.errors import UserError
from scripts.images import itk as itk_format
from scripts.images.dicom_slices import Slice, chosen_series, gdcm, read_frames
from scripts.images.header import LPS_TO_RAS, ReadVoxels, VolumeHeader

TOLERANCE_MM = 0.02  # maximum distance of a slice from its grid position; positions are often rounded to 0.01 mm
TOLERANCE_DEGREES = 0.1  # maximum angle between the line through the slices and their normal
TOLERANCE_COSINE = 1e-3  # maximum difference between components of two orientations
WHOLE_INTERVALS = 0.1  # a gap this close to a multiple of the slice distance means missing slices, else uneven spacing


def ordered_grid(path: str, slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Sort the slices by position and compute the affine of the volume.

    Args:
        path: path of the series, for error messages.
        slices: slices of one series, in any order.

    Returns:
        The slices, sorted along the normal of their planes, and the affine `(4, 4)` from voxel index to mm (LPS).

    Raises:
        UserError: for a multi-frame or colour file, a file without position or orientation, slices that differ in size,
            spacing or orientation, two slices at one position, missing slices, uneven distances, or sheared stacks
            (gantry tilt).
    """
    for each in slices:
        _check_slice(path, each)
    _check_alike(path, slices)
    row, column = np.reshape(slices[0].orientation, (2, 3))
    normal = np.cross(row, column)
    slices = sorted(slices, key=lambda each: float(np.dot(each.position, normal)))
    positions = np.array([each.position for each in slices])
    _check_distances(path, slices, np.diff(positions @ normal))
    _check_straight(path, slices, positions, normal)
    between_rows, between_columns = slices[0].spacing
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    if len(slices) > 1:
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(slices) - 1)
    else:
        affine[:3, 2] = normal * ((slices[0].thickness or (1.0,))[0] or 1.0)
    affine[:3, 3] = positions[0]
    return slices, affine


def _check_slice(path: str, each: Slice) -> None:
    if each.frames > 1:
        raise UserError(
            f"{each.path} is a multi-frame DICOM file of {each.frames} frames that does not say where they are: "
            "convert it to NIfTI."
        )
    if each.components > 1:
        raise UserError(f"{each.path} is a DICOM image in colours (RGB): remove it, or convert it to greyscale.")
    for name, values, count in (
        ("position (Image Position Patient)", each.position, 3),
        ("orientation (Image Orientation Patient)", each.orientation, 6),
        ("pixel size (Pixel Spacing)", each.spacing, 2),
    ):
        if len(values) != count or not np.isfinite(values).all():
            raise UserError(
                f"{each.path} has no {name}, so {path} cannot be read as a volume: remove it or convert the series."
            )
    axes = np.reshape(each.orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=TOLERANCE_COSINE):
        raise UserError(
            f"{each.path} has an orientation whose axes are not perpendicular: the file is damaged, replace it."
        )


def _check_alike(path: str, slices: Sequence[Slice]) -> None:
    first = slices[0]
    for each in slices[1:]:
        for name, one, other, tolerance in (
            ("sizes", first.size, each.size, 0),
            ("orientations", first.orientation, each.orientation, TOLERANCE_COSINE),
            ("pixel sizes", first.spacing, each.spacing, 1e-4),
        ):
            if not np.allclose(one, other, rtol=0, atol=tolerance):
                raise UserError(
                    f"{path} has slices of different {name}, {first.name} ({_format(one)}) and {each.name} "
                    f"({_format(other)}): leave only the slices of one volume in the folder."
                )


def _check_distances(path: str, slices: Sequence[Slice], gaps: np.ndarray) -> None:
    """Check `gaps`, the distances between neighbouring slices along the normal in mm."""
    for index, gap in enumerate(gaps):
        if gap < TOLERANCE_MM:
            one, other = slices[index].name, slices[index + 1].name
            raise UserError(
                f"{path} has two instances at one position, {one} and {other}: keep one of them (put time "
                "points and echoes into separate folders)."
            )
    if len(gaps) < 2:
        return
    usual = sorted(gaps)[(len(gaps) - 1) // 2]
    index = int(gaps.argmax())
    intervals = gaps[index] / usual
    # If many distances are larger, the spacing of the series changes, and no slice is missing.
    few = int((gaps > 1.5 * usual).sum()) <= max(1, len(gaps) // 4)
    if few and intervals > 1.5 and abs(intervals - round(intervals)) < WHOLE_INTERVALS:
        raise UserError(
            f"{path} has missing slices, {round(intervals) - 1} between {slices[index].name} and "
            f"{slices[index + 1].name}, which are {gaps[index]:.4g} mm apart instead of {usual:.4g} mm: "
            "add them."
        )
    places = np.concatenate([[0.0], np.cumsum(gaps)])
    off = places - np.linspace(0.0, places[-1], len(places))
    if np.abs(off).max() > TOLERANCE_MM:
        raise UserError(
            f"{path} has uneven spacing, from {gaps.min():.4g} to {gaps.max():.4g} mm between slices: "
            "resample the series to an even spacing."
        )


def _check_straight(path: str, slices: Sequence[Slice], positions: np.ndarray, normal: np.ndarray) -> None:
    steps = positions - positions[0]
    sideways = steps - np.outer(steps @ normal, normal)
    said = max((abs(each.tilt[0]) for each in slices if each.tilt), default=0.0)
    if len(slices) > 1:
        angle = math.degrees(math.atan2(np.linalg.norm(sideways[-1]), steps[-1] @ normal))
        off = sideways - np.outer(np.linspace(0, 1, len(slices)), sideways[-1])
    else:
        angle, off = 0.0, sideways
    off = np.linalg.norm(off, axis=1)
    if off.max() > TOLERANCE_MM:
        raise UserError(
            f"{path} has slices that are shifted sideways, at or next to {slices[int(off.argmax())].name}: remove "
            "the slices of another volume, or resample the series to a regular grid."
        )
    along_body = np.abs(normal).max() > math.cos(math.radians(TOLERANCE_DEGREES))
    if along_body:  # the planes do not show the tilt in the tag
        angle = max(angle, said)
    if angle > TOLERANCE_DEGREES:
        raise UserError(
            f"{path} was taken with gantry tilt ({angle:.3g} degrees), so its slices do not form a rectangular "
            "grid: correct the tilt with a conversion tool and use the result."
        )


def _format(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values) if len(values) < 6 else " ".join(f"{v:.3g}" for v in values)


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Read the header of the only series in a folder; return it with a function that reads the rescaled voxels.

    Args:
        path: the folder, or `FOLDER#SERIES_UID`.

    Raises:
        UserError: if the slices do not form one volume; the message says why.
    """
    slices, affine = ordered_grid(path, chosen_series(path))
    shape = (*slices[0].size, len(slices))

    def voxels() -> np.ndarray:
        frames = {path: read_frames(path) for path in {each.path for each in slices if each.frame}}
        planes = [
            frames[each.path][each.frame - 1]
            if each.frame
            else itk_format.read_array(each.path, gdcm(), each.dtype)[0, :, :, 0]
            for each in slices
        ]
        return np.stack(planes, axis=-1)[None]

    dtype = np.result_type(*(each.dtype for each in slices))
    return VolumeHeader(path, shape, 1, LPS_TO_RAS @ affine, dtype.name, True), voxels
