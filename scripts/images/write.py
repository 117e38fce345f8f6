# SPDX-License-Identifier: Apache-2.0
"""Volumes written whole, on a grid that is known, in NIfTI, NRRD or MetaImage."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel
import numpy as np

from scripts.errors import UserError
from scripts.files import atomic_write
from scripts.images.header import LPS_TO_RAS, METAIMAGE, NIFTI, NRRD, ending_of

OUTPUT_FORMATS = ("nifti", "input")


def output_ending(image: str | Path, output_format: str) -> str:
    """Ending of what is written for an image: `.nii.gz`, or with `input` that of the image's own format.

    A format of two files (`.nhdr`, `.mhd`) has a form of one, which is taken; DICOM becomes `.nii.gz`.

    Raises:
        UserError: for an unknown format.
    """
    if output_format not in OUTPUT_FORMATS:
        raise UserError(f"output_format must be {' or '.join(OUTPUT_FORMATS)}, got {output_format!r}.")
    ending = ending_of(image)
    if output_format == "nifti" or ending is None or Path(image).is_dir():
        return NIFTI[0]
    return {**dict.fromkeys(NRRD, ".nrrd"), **dict.fromkeys(METAIMAGE, ".mha")}.get(ending, ending)


def write_volume(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume; a file under this name is whole or not there.

    Args:
        path: ends in `.nii.gz`, `.nii`, `.nrrd` or `.mha`.
        array: `(X, Y, Z)`, or with NIfTI `(X, Y, Z, channels)`; its type is the file's, but 32-bit integers become
            double in NRRD and MetaImage, as ITK's Python package has no such images.
        affine: `(4, 4)`, voxel index to mm, RAS.

    Raises:
        UserError: if the file cannot be written.
        ValueError: for a path of another kind, or channels in NRRD or MetaImage.
    """
    ending = ending_of(path)
    if ending not in (*NIFTI, ".nrrd", ".mha") or (ending not in NIFTI and array.ndim != 3):
        raise ValueError(f"{path}: this is no format for an array of {array.ndim} axes.")
    try:
        with atomic_write(path, ending) as beside:
            (_write_nifti if ending in NIFTI else _write_itk)(beside, array, np.asarray(affine, float))
    except (OSError, RuntimeError) as error:  # ITK reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise UserError(f"{path} cannot be written ({reason}): free space or mend the folder's permissions.") from error


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
    # ITK takes the qform where it can, nibabel the sform: both say the same, unless axes are not perpendicular.
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner" if _perpendicular(affine) else "unknown", strip_shears=True)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_itk(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    kind = np.float64 if array.dtype.itemsize == 4 and array.dtype.kind in "iu" else array.dtype
    image = itk.image_from_array(np.ascontiguousarray(array.T, dtype=kind))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path), compression=True)


def _perpendicular(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))
