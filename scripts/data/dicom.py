# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices as one volume, read through ITK's GDCM.

A series becomes a volume only if its slices are parallel, aligned and evenly spaced; everything else is refused by
name. GDCM's own series reader puts such series together with at most a line on stderr.
"""

from __future__ import annotations

import numpy as np

from scripts.data import itk_files
from scripts.data.dicom_geometry import ordered_grid
from scripts.data.dicom_slices import chosen_series, image_io, split_series
from scripts.data.volume_header import LPS_TO_RAS, ReadVoxels, VolumeHeader

__all__ = ["open_volume", "split_series"]


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Header of the one series in a folder, and a function that reads the voxels, rescaled slice by slice.

    Args:
        path: the folder, or `FOLDER#SERIES_UID`.

    Raises:
        BundleError: naming what keeps the slices from being one volume.
    """
    slices, affine = ordered_grid(path, chosen_series(path))
    shape = (*slices[0].size, len(slices))

    def voxels() -> np.ndarray:
        planes = [itk_files.read_array(each.path, image_io(each.path))[0, :, :, 0] for each in slices]
        return np.stack(planes, axis=-1)[None]

    dtype = np.result_type(*(each.dtype for each in slices))
    return VolumeHeader(path, shape, 1, LPS_TO_RAS @ affine, dtype.name, True), voxels
