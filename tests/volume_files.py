# SPDX-License-Identifier: Apache-2.0
"""Small volumes in files of every format, written by nibabel and ITK and not by what is tested."""

from __future__ import annotations

import locale
from dataclasses import dataclass, field
from pathlib import Path

import itk
import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stored_as(array: np.ndarray, affine: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes in another order: array `(X, Y, Z)` and affine (RAS) to those of `axcodes`."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    return np.ascontiguousarray(apply_orientation(array, change)), affine @ inv_ornt_aff(change, array.shape)


def touch(root: Path, *names: str, content: bytes = b"") -> Path:
    """Write files with the same content below a folder, and return the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write `(X, Y, Z)` with a RAS affine in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name.lower():
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path))
    return path


@dataclass
class DicomSlice:
    """One instance to be written; a test changes what it is about. Lengths in mm, LPS."""

    name: str
    pixels: np.ndarray  # (X, Y)
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]  # along a row, along a column
    series: str = "1.2.826.0.1.1"
    tags: dict[str, str] = field(default_factory=dict)
    compression: int | None = None


def dicom_slices(array: np.ndarray, affine: np.ndarray) -> list[DicomSlice]:
    """The planes of `(X, Y, Z)` along the last axis, named `1.dcm`, `2.dcm`, ... (so `10.dcm` sorts before `2.dcm`)."""
    lps = LPS_TO_RAS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    return [
        DicomSlice(
            f"{k + 1}.dcm",
            array[:, :, k],
            lps[:3, 3] + k * lps[:3, 2],
            np.concatenate([lps[:3, 0] / sizes[0], lps[:3, 1] / sizes[1]]),
            (float(sizes[0]), float(sizes[1])),
        )
        for k in range(array.shape[2])
    ]


def write_dicom(folder: Path, slices: list[DicomSlice]) -> Path:
    """Write the instances into a folder, through GDCM."""
    folder.mkdir(parents=True, exist_ok=True)
    encoding = locale.setlocale(locale.LC_CTYPE)
    for number, each in enumerate(slices):
        plane = each.pixels.T[None] if each.pixels.ndim == 2 else each.pixels.T
        image = itk.image_from_array(np.ascontiguousarray(plane))
        image.SetSpacing([*each.spacing, 1.0])
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{each.series}.{number + 1}",
            "0008|0060": "MR",
            "0020|000d": "1.2.826.0.1",
            "0020|000e": each.series,
            "0020|0032": "\\".join(f"{v:.9g}" for v in each.position),
            "0020|0037": "\\".join(f"{v:.9g}" for v in each.orientation),
            **each.tags,
        }
        for tag, value in tags.items():
            image.GetMetaDataDictionary()[tag] = value
        io = itk.GDCMImageIO.New()
        io.KeepOriginalUIDOn()
        if each.compression is not None:
            io.SetCompressionType(each.compression)
        writer = itk.ImageFileWriter[type(image)].New(Input=image, FileName=str(folder / each.name), ImageIO=io)
        writer.SetUseCompression(each.compression is not None)
        writer.Update()
    locale.setlocale(locale.LC_CTYPE, encoding)  # GDCM's writer leaves the process in ASCII
    return folder


def write_bare_dicom(folder: Path, slices: list[DicomSlice], ending: str) -> Path:
    """Write instances without the preamble and the file header, as old scanners do."""
    write_dicom(folder, slices)
    for each in slices:
        file = folder / each.name
        content = file.read_bytes()
        header = 144 + int.from_bytes(content[140:144], "little")  # group 2 says how long it is
        file.with_name(f"{file.stem}{ending}").write_bytes(content[header:])
        file.unlink()
    return folder


def write_other_dicom(folder: Path) -> Path:
    """Write a DICOMDIR, RT structures and a segmentation, which begin as slices do and are none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, storage in (
        ("DICOMDIR", b"1.2.840.10008.1.3.10"),
        ("rt.dcm", b"1.2.840.10008.5.1.4.1.1.481.3\0"),
        ("seg.dcm", b"1.2.840.10008.5.1.4.1.1.66.4"),
    ):
        element = b"\x02\0\x02\0UI" + len(storage).to_bytes(2, "little") + storage
        (folder / name).write_bytes(bytes(128) + b"DICM" + element)
    return folder


def volume(shape: tuple[int, int, int] = (9, 7, 5)) -> np.ndarray:
    """`(X, Y, Z)`, int16, every voxel another number, negative ones among them."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 100


def affine(spacing: tuple[float, float, float] = (1.5, 2.0, 2.5)) -> np.ndarray:
    """RAS, axes along the body's, an origin that is not 0."""
    result = np.diag([*spacing, 1.0])
    result[:3, 3] = [-11.0, 23.5, 40.25]
    return result


def oblique(spacing: tuple[float, float, float] = (1.5, 2.0, 2.5)) -> np.ndarray:
    """RAS, turned by 20 degrees about x and 10 about z."""
    a, b = np.radians(20.0), np.radians(10.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    result = affine(spacing)
    result[:3, :3] = about_z @ about_x @ result[:3, :3]
    return result
