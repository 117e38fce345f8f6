# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage (MHA, MHD) through ITK."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import itk
import numpy as np

from scripts.data import text_header
from scripts.data.file_endings import METAIMAGE, ending_of, in_lower_case
from scripts.data.volume_header import LPS_TO_RAS, ReadVoxels, VolumeHeader, shape_and_channels
from scripts.errors import BundleError

WRAPPED = {"uint8": "UC", "uint16": "US", "int16": "SS", "float32": "F", "float64": "D"}
"""Types of which ITK's Python package has images; others are read as double, which holds integers up to 2^53."""


def open_volume(path: str) -> tuple[VolumeHeader, ReadVoxels]:
    """Header, and a function that reads the voxels.

    Raises:
        BundleError: for colours or complex numbers, or for axes that are no volume.
        RuntimeError: from ITK, for a file that it cannot read.
    """
    with _as_itk_wants_it(path) as file:
        io = _image_io(file)
        axes = [io.GetDimensions(axis) for axis in range(io.GetNumberOfDimensions())]
        kind = io.GetPixelTypeAsString(io.GetPixelType())
        if kind in ("rgb", "rgba", "complex"):
            name = "complex numbers" if kind == "complex" else "colours (RGB)"
            raise BundleError(f"{path} holds {name}: convert it to one number a voxel, or a channel for each.")
        shape, channels = shape_and_channels(path, axes, io.GetNumberOfComponents())
        header = VolumeHeader(
            path, shape, channels, LPS_TO_RAS @ lps_affine(io), stored_type(io).name, text_header.is_oriented(path)
        )

    def voxels() -> np.ndarray:
        with _as_itk_wants_it(path) as file:
            array = read_array(file, _image_io(file))
        if array.ndim == 5:
            array = np.moveaxis(array, 4, 1)  # a fourth axis is one of channels
        return array.reshape(channels, *shape)

    return header, voxels


def read_array(file: str, io: itk.ImageIOBase) -> np.ndarray:
    """Voxels `(components, X, Y, ...)` in their stored type.

    Args:
        file: path that `io` can read.
        io: with the file's header already read.
    """
    stored = stored_type(io)
    component = getattr(itk, WRAPPED.get(stored.name, "D"))
    # Always an image of vectors: of those every number of components exists.
    reader = itk.ImageFileReader[itk.VectorImage[component, io.GetNumberOfDimensions()]].New(FileName=file, ImageIO=io)
    reader.Update()
    return itk.array_from_image(reader.GetOutput()).T.astype(stored, copy=False)


def stored_type(io: itk.ImageIOBase) -> np.dtype:
    """NumPy's type for the numbers in the file."""
    name = io.GetComponentTypeAsString(io.GetComponentType())
    kind = "u" if name.startswith("unsigned") else "f" if name in ("float", "double") else "i"
    return np.dtype(f"{kind}{io.GetComponentSize()}")


def lps_affine(io: itk.ImageIOBase) -> np.ndarray:
    """`(4, 4)`, voxel index to mm, LPS, of the first three axes; a missing third one is perpendicular, 1 mm."""
    affine = np.eye(4)
    for axis in range(min(3, io.GetNumberOfDimensions())):
        direction = np.asarray(io.GetDirection(axis))[:3]
        affine[: len(direction), axis] = direction * io.GetSpacing(axis)
        affine[axis, 3] = io.GetOrigin(axis)
    return affine


def _image_io(file: str) -> itk.ImageIOBase:
    io = (itk.MetaImageIO if ending_of(file) in METAIMAGE else itk.NrrdImageIO).New()
    if not io.CanReadFile(file):
        raise ValueError("its header is not of the format that its ending promises")
    io.SetFileName(file)
    io.ReadImageInformation()
    return io


@contextmanager
def _as_itk_wants_it(path: str) -> Iterator[str]:
    """The path itself, or one in a folder of its own that lives as long as the context."""
    repaired = text_header.with_list_axis(path)
    if repaired is None:
        with in_lower_case(path, beside=text_header.data_files(path)) as file:
            yield file
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "header.nhdr")
        file.write_bytes(repaired)
        yield str(file)
