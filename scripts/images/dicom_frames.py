# SPDX-License-Identifier: Apache-2.0
"""Read the frames of an enhanced multi-frame DICOM file, through pydicom.

GDCM decodes such a file too, but it reports neither the position nor the rescaling of each frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.errors import UserError

if TYPE_CHECKING:
    from scripts.images.dicom_slices import Slice

DICOM_REQUIREMENTS = "pip install -r requirements-dicom.txt"


def frames_of(file: Slice) -> list[Slice]:
    """Return the frames of a multi-frame file as slices, or the file as it is if it does not place its frames.

    Args:
        file: its header as GDCM reads it.

    Raises:
        UserError: if pydicom is not installed.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise UserError(
            f"{file.path} is a multi-frame (enhanced) DICOM file of {file.frames} frames: run `{DICOM_REQUIREMENTS}` "
            "to read it, or convert it to NIfTI."
        ) from error
    dataset = dcmread(file.path, stop_before_pixels=True)
    frames = [
        replace(
            file,
            frames=1,
            frame=number,
            dtype=_type_of(dataset) if _rescaling(groups) == (1, 0) else "float32",
            position=_numbers(groups, "PlanePositionSequence", "ImagePositionPatient"),
            orientation=_numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient"),
            spacing=_numbers(groups, "PixelMeasuresSequence", "PixelSpacing"),
            thickness=_numbers(groups, "PixelMeasuresSequence", "SliceThickness"),
            tilt=_numbers(groups, "CTAcquisitionDetailsSequence", "GantryDetectorTilt"),
        )
        for number, groups in enumerate(_functional_groups(dataset), start=1)
    ]
    return frames or [file]


def read_frames(path: str) -> list[np.ndarray]:
    """Read the frames of a file, each `(X, Y)`, rescaled; float32 where rescaling changes the values."""
    from pydicom import dcmread

    dataset = dcmread(path)
    return [
        frame.T if (slope, intercept) == (1, 0) else (frame.T * slope + intercept).astype(np.float32)
        for frame, (slope, intercept) in zip(
            dataset.pixel_array, map(_rescaling, _functional_groups(dataset)), strict=True
        )
    ]


def _functional_groups(dataset: Any) -> Iterator[dict[str, Any]]:
    """The functional groups of each frame by name, those of all frames included; empty if the file has none."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    for own in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        yield {element.keyword: element.value[0] for groups in (shared[0], own) for element in groups if element.value}


def _numbers(groups: dict[str, Any], group: str, name: str) -> tuple[float, ...]:
    """An element of a functional group as numbers; empty if the file does not give it."""
    value = groups[group].get(name) if group in groups else None
    return () if value is None else tuple(map(float, np.atleast_1d(value)))


def _rescaling(groups: dict[str, Any]) -> tuple[float, float]:
    """Slope and intercept of a frame."""
    slope, intercept = (
        _numbers(groups, "PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept")
    )
    return (slope or (1.0,))[0], (intercept or (0.0,))[0]


def _type_of(dataset: Any) -> str:
    """NumPy name of the type of the stored numbers."""
    return f"{'int' if dataset.get('PixelRepresentation') else 'uint'}{dataset.get('BitsAllocated', 16)}"
