# SPDX-License-Identifier: Apache-2.0
"""Write the segmentation of a DICOM series as DICOM SEG, with highdicom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monai
import numpy as np

from scripts.errors import UserError
from scripts.files import atomic_write
from scripts.images.dicom import ordered_grid
from scripts.images.dicom_slices import DICOM_REQUIREMENTS, Slice, chosen_series
from scripts.images.label_names import colour_of

if TYPE_CHECKING:
    from pydicom import FileDataset

ALWAYS_THERE = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
"""Elements that every image must have, even if empty; anonymisation may have removed them."""

TEXT = 64
"""Maximum number of characters in DICOM's type for names."""


def highdicom() -> Any:
    """Import the package highdicom.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise UserError(f"output_format dicom_seg needs pydicom and highdicom: run `{DICOM_REQUIREMENTS}`.") from error
    # For each case, highdicom would log identifiers of the patient's study.
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    return highdicom


def write_dicom_seg(
    path: str | Path,
    classes: np.ndarray,
    series: str,
    label_names: Sequence[str],
    model: str | Sequence[str],
    finished: Callable[[Path], object] | None = None,
) -> None:
    """Write a binary segmentation with a segment for each class, atomically.

    The planes have the positions, the orientation and the frame of reference of the series. Planes without a structure
    are left out. The type of every segment is "Tissue", because label names are free text.

    Args:
        path: the file, `.dcm`.
        classes: `(X, Y, Z)`, class indices, on the grid of the series as `scripts.images.read` reads it.
        series: folder of the series, or `FOLDER#SERIES_UID`.
        label_names: names of the classes, background first; class k becomes segment k.
        model: name of the model file, or names of the files of an ensemble.
        finished: called with the path of the complete file before it is renamed to `path`.

    Raises:
        UserError: if highdicom is not installed, the series consists of several multi-frame files, or the file cannot
            be written.
    """
    hd = highdicom()
    from pydicom.sr.codedict import codes

    software = f"MONAI {monai.__version__}"
    model = (model if isinstance(model, str) else ", ".join(model))[:TEXT] or "model"
    slices, affine = ordered_grid(series, chosen_series(series))
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model, version=software, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:TEXT],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=name[:TEXT],
            display_color=hd.color.CIELabColor.from_rgb(*colour_of(number)),
        )
        for number, name in enumerate(label_names[1:], start=1)
    ]
    images, planes = _sources(series, slices, float(np.linalg.norm(affine[:3, 2])))
    result = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack([classes[:, :, plane].T for plane in planes]).astype(np.uint16),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="MONAI bundle",
        manufacturer_model_name=model,
        software_versions=software,
        device_serial_number="0",
        series_description="Segmentation",
        content_label="SEGMENTATION",
        omit_empty_frames=bool(classes.any()),
    )
    try:
        with atomic_write(path, ".dcm") as beside:
            result.save_as(beside)
            if finished is not None:
                finished(beside)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free space or correct the folder's permissions."
        ) from error


def _sources(series: str, slices: Sequence[Slice], distance: float) -> tuple[list[FileDataset], list[int]]:
    """Return the headers of the files of a series, and the plane in the volume of each frame in file order.

    Args:
        series: path of the series, for error messages.
        slices: slices in the order of the planes.
        distance: distance between neighbouring planes in mm.
    """
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    files = list(dict.fromkeys(each.path for each in slices))
    if slices[0].frame and len(files) > 1:
        raise UserError(f"{series} has several multi-frame files, {', '.join(files[:2])}: use --output_format nifti.")
    images = [dcmread(file, stop_before_pixels=True) for file in files]
    reference = images[0].get("FrameOfReferenceUID") or generate_uid()
    for image in images:
        image.FrameOfReferenceUID = image.get("FrameOfReferenceUID") or reference
        for name in ALWAYS_THERE:
            if name not in image:
                setattr(image, name, "")
        _state_grid(image, slices[0], distance)
    return images, sorted(range(len(slices)), key=lambda plane: slices[plane].frame)


def _state_grid(image: FileDataset, first: Slice, distance: float) -> None:
    """Write orientation and voxel size of the volume to a header, where highdicom expects them, with equal digits."""
    from pydicom import Dataset

    hd = highdicom()
    thickness = (first.thickness or (distance,))[0] or distance
    if first.frame:
        if not image.get("SharedFunctionalGroupsSequence"):
            image.SharedFunctionalGroupsSequence = [Dataset()]
        shared = image.SharedFunctionalGroupsSequence[0]
        shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(first.spacing, thickness, distance)
        shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", first.orientation)
    else:
        image.SliceThickness, image.SpacingBetweenSlices = thickness, distance
        image.ImageOrientationPatient = list(first.orientation)
