# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices as one volume, read through ITK's GDCM.

A series becomes a volume only if its slices are parallel, aligned and evenly spaced; everything else is refused by
name. GDCM's own series reader puts such series together with at most a line on stderr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import itk
import numpy as np

from scripts.errors import UserError
from scripts.images import itk as itk_format
from scripts.images.dicom_slices import Slice, chosen_series, split_series
from scripts.images.header import LPS_TO_RAS, ReadVoxels, VolumeHeader

TOLERANCE_MM = 0.02  # how far a slice may lie from its place on the grid; positions are often rounded to 0.01 mm
TOLERANCE_DEGREES = 0.1  # of the line through the slices against their normal
TOLERANCE_COSINE = 1e-3  # of the numbers that give an orientation
WHOLE_INTERVALS = 0.1  # slices are missing where a gap is so nearly a whole number of distances; else spacing is uneven


def ordered_grid(path: str, slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """The slices in the order of their positions, and the affine of their voxels.

    Args:
        path: the series, for messages.
        slices: of one series, in any order.

    Returns:
        The slices along the normal of their planes, and the affine `(4, 4)`, voxel index to mm, LPS.

    Raises:
        UserError: for frames or colours in one file, a file without its place, files of different size, spacing or
            orientation, two at one place, missing slices, uneven distances, or planes that are not straight above one
            another (gantry tilt).
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
            f"{each.path} is a multi-frame (enhanced) DICOM file of {each.frames} frames, which is not read: "
            "convert it to NIfTI."
        )
    if each.components > 1:
        raise UserError(f"{each.path} is a DICOM picture in colours (RGB): remove it, or convert it to grey.")
    for name, values, count in (
        ("position (Image Position Patient)", each.position, 3),
        ("orientation (Image Orientation Patient)", each.orientation, 6),
        ("pixel size (Pixel Spacing)", each.spacing, 2),
    ):
        if len(values) != count or not np.isfinite(values).all():
            raise UserError(
                f"{each.path} does not say its {name}, so {path} is no volume: remove it or convert the series."
            )
    axes = np.reshape(each.orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=TOLERANCE_COSINE):
        raise UserError(
            f"{each.path} has an orientation of axes that are not perpendicular: it is damaged, replace it."
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
                    f"({_format(other)}): keep those of one volume in the folder."
                )


def _check_distances(path: str, slices: Sequence[Slice], gaps: np.ndarray) -> None:
    """`gaps` are the distances between neighbours along the normal, mm."""
    for index, gap in enumerate(gaps):
        if gap < TOLERANCE_MM:
            one, other = slices[index].name, slices[index + 1].name
            raise UserError(
                f"{path} has two instances at one position, {one} and {other}: keep one of them (time points "
                "and echoes need folders of their own)."
            )
    if len(gaps) < 2:
        return
    usual = sorted(gaps)[(len(gaps) - 1) // 2]
    index = int(gaps.argmax())
    intervals = gaps[index] / usual
    if intervals > 1.5 and abs(intervals - round(intervals)) < WHOLE_INTERVALS:
        raise UserError(
            f"{path} has missing slices, {round(intervals) - 1} between {slices[index].name} and "
            f"{slices[index + 1].name}, which are {gaps[index]:.4g} mm apart, others {usual:.4g} mm: add them."
        )
    places = np.concatenate([[0.0], np.cumsum(gaps)])
    off = places - np.linspace(0.0, places[-1], len(places))
    if np.abs(off).max() > TOLERANCE_MM:
        raise UserError(
            f"{path} has uneven spacing, from {gaps.min():.4g} to {gaps.max():.4g} mm between slices: "
            "resample the series to an even one."
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
            f"{path} has slices that are shifted sideways, at or beside {slices[int(off.argmax())].name}: remove "
            "what does not belong or resample the series to an even grid."
        )
    along_body = np.abs(normal).max() > math.cos(math.radians(TOLERANCE_DEGREES))
    if along_body:  # then the planes do not show the tilt that the tag tells of
        angle = max(angle, said)
    if angle > TOLERANCE_DEGREES:
        raise UserError(
            f"{path} was taken with gantry tilt ({angle:.3g} degrees), so its slices are not straight above one "
            "another: correct the tilt and give the result."
        )


def _format(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values) if len(values) < 6 else " ".join(f"{v:.3g}" for v in values)


__all__ = ["open_volume", "split_series"]


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Header of the one series in a folder, and a function that reads the voxels, rescaled slice by slice.

    Args:
        path: the folder, or `FOLDER#SERIES_UID`.

    Raises:
        UserError: naming what keeps the slices from being one volume.
    """
    slices, affine = ordered_grid(path, chosen_series(path))
    shape = (*slices[0].size, len(slices))

    def voxels() -> np.ndarray:
        planes = [itk_format.read_array(each.path, itk.GDCMImageIO.New(), each.dtype)[0, :, :, 0] for each in slices]
        return np.stack(planes, axis=-1)[None]

    dtype = np.result_type(*(each.dtype for each in slices))
    return VolumeHeader(path, shape, 1, LPS_TO_RAS @ affine, dtype.name, True), voxels
