# SPDX-License-Identifier: Apache-2.0
"""Write volumes in NIfTI, NRRD or MetaImage, and name the file endings of every output format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import itk
import nibabel
import numpy as np

from scripts.errors import UserError
from scripts.files import atomic_write
from scripts.images.dicom_seg import highdicom
from scripts.images.dicom_slices import split_series
from scripts.images.header import LPS_TO_RAS, METAIMAGE, MGH, NIFTI, NRRD, PAIR, SLICER, ending_of
from scripts.images.label_names import to_nifti, to_nrrd
from scripts.images.nifti import header_with_grid_of

DICOM_SEG = ".dcm"
OUTPUT_FORMATS = ("nifti", "input", "seg_nrrd", "dicom_seg")


def require_output_format(output_format: str) -> None:
    """Check that label volumes can be written in a format.

    Raises:
        UserError: for an unknown format, or if the packages for DICOM are not installed.
    """
    if output_format not in OUTPUT_FORMATS:
        raise UserError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}.")
    if output_format == "dicom_seg":
        highdicom()


def output_ending(image: str | Path, output_format: str) -> str:
    """Return the ending of the label volume of an image.

    With `input`, the format of the image is used; but formats with two files (`.nhdr`, `.mhd`) are written as one file
    (`.nrrd`, `.mha`), and DICOM, Analyze and MGH are written as `.nii.gz`.

    Raises:
        UserError: for `dicom_seg` if the image is not a DICOM series.
    """
    ending = ending_of(image)
    if output_format == "seg_nrrd":
        return SLICER[0]
    if output_format == "dicom_seg":
        if not Path(split_series(image)[0]).is_dir():
            raise UserError(f"{image} is not a DICOM series, but output_format is dicom_seg: choose another.")
        return DICOM_SEG
    if output_format == "nifti" or ending is None or Path(image).is_dir():
        return NIFTI[0]
    of_format = {NRRD: ".nrrd", METAIMAGE: ".mha", PAIR: NIFTI[0], MGH: NIFTI[0]}
    return next((written for endings, written in of_format.items() if ending in endings), ending)


def write_volume(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray,
    image: str | Path | None = None,
    names: Mapping[int, str] | None = None,
    finished: Callable[[Path], object] | None = None,
) -> None:
    """Write a volume atomically: after an interruption the file is either complete or missing.

    Args:
        path: path with the ending `.nii.gz`, `.nii`, `.nrrd`, `.seg.nrrd` or `.mha`.
        array: `(X, Y, Z)`, or for NIfTI `(X, Y, Z, channels)`; its type is kept. In NRRD and MetaImage, 32-bit and
            64-bit integers become double, because ITK's Python package cannot write them.
        affine: `(4, 4)`, voxel index to mm (RAS).
        image: file with the same grid. If both are NIfTI, sform, qform, voxel size and unit are copied from it, so that
            every viewer aligns the two, even if the image does not state the directions of its axes.
        names: name of each label value, without the background, for the header of NIfTI and NRRD
            (`scripts.images.label_names`); `None` for none.
        finished: called with the path of the complete file before it is renamed to `path`.

    Raises:
        UserError: if the file cannot be written.
        ValueError: for another ending, or channels in NRRD or MetaImage.
    """
    ending = ending_of(path)
    if ending not in (*NIFTI, SLICER[0], ".nrrd", ".mha") or (ending not in NIFTI and array.ndim != 3):
        raise ValueError(f"{path}: this format cannot store an array of {array.ndim} axes.")
    try:
        with atomic_write(path, ending) as beside:
            if ending in NIFTI:
                _write_nifti(beside, array, np.asarray(affine, float), image, names or {})
            else:
                _write_itk(beside, array, np.asarray(affine, float), names or {})
            if finished is not None:
                finished(beside)
    except (OSError, RuntimeError) as error:  # ITK reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise UserError(
            f"{path} cannot be written ({reason}): free space or correct the folder's permissions."
        ) from error


def _write_nifti(
    path: Path, array: np.ndarray, affine: np.ndarray, like: str | Path | None, names: Mapping[int, str]
) -> None:
    header = None if like is None or ending_of(like) not in (*NIFTI, *PAIR) else header_with_grid_of(str(like))
    if header is not None:
        image = nibabel.Nifti1Image(array, None, header, dtype=array.dtype)
    else:
        image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
        # Set both, because ITK prefers the qform and nibabel the sform. A qform cannot represent axes that are not
        # perpendicular.
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner" if _perpendicular(affine) else "unknown", strip_shears=True)
        image.header.set_xyzt_units("mm")
    if names:
        image.header.extensions.append(to_nifti(names))
    nibabel.save(image, path)


def _write_itk(path: Path, array: np.ndarray, affine: np.ndarray, names: Mapping[int, str]) -> None:
    kind = np.float64 if array.dtype.itemsize >= 4 and array.dtype.kind in "iu" else array.dtype
    image = itk.image_from_array(np.ascontiguousarray(array.T, dtype=kind))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    if names and ending_of(path) in NRRD:
        fields = image.GetMetaDataDictionary()
        for key, text in to_nrrd(names, array.shape).items():
            fields[key] = text
    itk.imwrite(image, str(path), compression=True)


def _perpendicular(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))
