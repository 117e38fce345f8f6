# SPDX-License-Identifier: Apache-2.0
"""Find the slices of one DICOM series in a folder: single files, and frames of enhanced multi-frame files.

ITK's GDCM reads the headers of single files. It can also decode a multi-frame file, but it reports neither the position
nor the rescaling of each frame, so pydicom reads those files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.errors import UserError
from scripts.images.itk import stored_type

if TYPE_CHECKING:
    from itk.itkGDCMImageIOPython import itkGDCMImageIO


logger = logging.getLogger("dicom")

SLICE_ENDINGS = (".dcm", ".dicom", ".ima")
STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_SLICES = (
    "1.2.840.10008.1.3.10",  # DICOMDIR
    *(
        STORAGE + family
        for family in (
            "88.",  # structured reports, key object selections
            "11.",  # presentation states
            "481.",  # radiotherapy
            "66",  # raw data, registrations, segmentations
            "104.",  # documents
            "9.",  # waveforms
        )
    ),
)
"""Prefixes of the storage classes of files that are not slices, but may be in the same folder."""


@dataclass(frozen=True)
class Slice:
    """One DICOM instance.

    Attributes:
        path: the file.
        series: Series Instance UID.
        description: Series Description, for error messages.
        size: number of pixels along a row and along a column.
        frames: number of frames; a single slice has 1.
        components: values per pixel; a greyscale slice has 1.
        dtype: NumPy name of the type after rescaling.
        position: centre of the first pixel in mm, LPS; empty if the file does not give it.
        orientation: unit vectors along a row and along a column, six numbers; empty if the file does not give it.
        spacing: distance between rows and between columns in mm; empty if the file does not give it.
        thickness: slice thickness in mm; empty if the file does not give it.
        tilt: gantry tilt in degrees; empty if the file does not give it.
        frame: number of the frame in a multi-frame file, counted from 1; 0 for a file with a single slice.
    """

    path: str
    series: str
    description: str
    size: tuple[int, int]
    frames: int
    components: int
    dtype: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: tuple[float, ...]
    tilt: tuple[float, ...]
    frame: int = 0

    @property
    def name(self) -> str:
        """File name, and number of the frame if there are several."""
        return Path(self.path).name + (f" (frame {self.frame})" if self.frame else "")


def split_series(path: str | Path) -> tuple[str, str | None]:
    """Split `FOLDER#SERIES_UID` into folder and UID; any other path is returned unchanged, with `None`."""
    folder, mark, uid = str(path).rpartition("#")
    if mark and Path(folder).is_dir() and not Path(path).exists():
        return folder, uid
    return str(path), None


DRAWN = {STORAGE + "66.4": "a DICOM segmentation (SEG)", STORAGE + "481.3": "DICOM structures (RTSTRUCT)"}
"""Storage classes of files that hold drawn structures, which are not read."""


def drawn_structures(file: Path) -> str | None:
    """Describe a file if it is a DICOM file of segmented or drawn structures; otherwise return `None`."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return None
    return DRAWN.get(_storage_class(head)) if head[128:132] == b"DICM" else None


def looks_like_slice(file: Path) -> bool:
    """Decide by its first bytes and its name whether a file is a DICOM slice; a damaged slice counts as one.

    A file with the DICOM preamble is a slice unless its storage class says otherwise (a directory, a report, RT
    structures). A file without it is a slice if its name ends in `SLICE_ENDINGS`, or if GDCM can read it.

    Raises:
        OSError: for a file that cannot be opened and whose name does not end in `SLICE_ENDINGS`.
    """
    if file.name.startswith("."):
        return False
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        if file.suffix.lower() in SLICE_ENDINGS:
            return True  # reading the series will raise an error that names the file
        raise
    if head[128:132] == b"DICM":
        return not _storage_class(head).startswith(NO_SLICES)
    if file.suffix.lower() in SLICE_ENDINGS:
        return True
    # Files without a preamble begin with an element of group 2 or 8, but files of other formats may do so too.
    return head[:2] in (b"\2\0", b"\b\0") and gdcm().CanReadFile(str(file))


def _storage_class(head: bytes) -> str:
    """Find the Media Storage SOP Class UID in the first bytes of a file; empty if there is none.

    GDCM gives the same error for a report as for a damaged slice, so it cannot tell the two apart.
    """
    _, found, rest = head.partition(b"\x02\x00\x02\x00UI")  # always explicit VR little endian
    return rest[2 : 2 + int.from_bytes(rest[:2], "little")].strip(b"\0 ").decode("ascii", "replace") if found else ""


def gdcm() -> itkGDCMImageIO:
    """Return ITK's reader of DICOM files; `scripts.images.itk` explains how it is imported."""
    from itk.itkGDCMImageIOPython import itkGDCMImageIO

    return itkGDCMImageIO.New()


def image_io(path: str) -> itkGDCMImageIO:
    """Return a GDCM reader that has read the header of the file."""
    io = gdcm()
    io.SetFileName(path)
    io.ReadImageInformation()
    return io


def chosen_series(path: str) -> list[Slice]:
    """Read the headers of the only series in a folder, or of the series that `FOLDER#SERIES_UID` names, unordered.

    Other files are skipped and listed in the log.

    Raises:
        UserError: if there is no slice, several series and no UID, no series with the UID, or a damaged slice.
    """
    folder, uid = split_series(path)
    slices = _slices(Path(folder))
    if not slices:
        drawn = next(filter(None, map(drawn_structures, filter(Path.is_file, Path(folder).iterdir()))), None)
        if drawn:
            raise UserError(f"{folder} holds {drawn}, which is not read: convert it to a NIfTI or NRRD label file.")
        raise UserError(f"{folder} contains no DICOM slices: give the folder that directly contains the slices.")
    series: dict[str, list[Slice]] = {}
    for each in slices:
        series.setdefault(each.series, []).append(each)
    if uid is None and len(series) == 1:
        return slices
    if uid in series:
        return series[uid]
    told = "; ".join(f"{key} ({part[0].description or 'no name'}, {len(part)})" for key, part in series.items())
    fault = f"{len(series)} DICOM series" if uid is None else f"no series {uid}, but {len(series)}"
    raise UserError(
        f"{folder} contains {fault}: choose one with {folder}#UID, in dataset.json for a training case, or "
        f"put each series in a separate folder. UID is one of {told}."
    )


def series_of(folder: Path) -> str:
    """Return the UID of the series of the first slice in a folder; empty if it cannot be read."""
    try:
        return next(_read(str(file)).series for file in sorted(folder.iterdir()) if looks_like_slice(file))
    except (OSError, UserError, StopIteration):
        return ""


def _slices(folder: Path) -> list[Slice]:
    found, skipped = [], []
    for file in sorted(file for file in folder.iterdir() if not file.is_dir()):
        if looks_like_slice(file):
            each = _read(str(file))
            found += frames_of(each) if each.frames > 1 else [each]
        else:
            skipped.append(file.name)
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        logger.info(f"{folder}: skipped {', '.join(skipped[:5])}{more}, which are not DICOM slices.")
    return found


def _read(path: str) -> Slice:
    """Parse the header of one slice.

    Raises:
        UserError: for a damaged file, because the volume would be incomplete without it.
    """
    try:
        io = image_io(path)
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be read as a DICOM slice: the file is incomplete or damaged, replace or remove it."
        ) from error
    tags = io.GetMetaDataDictionary()

    def text(tag: str) -> str:
        return str(tags[tag]).strip("\0 ") if tags.HasKey(tag) else ""

    if text("0028|0004") == "MONOCHROME1" and int(text("0028|0008") or 1) == 1:  # ITK inverts the values
        raise UserError(
            f"{path} stores low values as bright (MONOCHROME1), which is not read: convert the series to NIfTI."
        )

    def numbers(tag: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text(tag).split("\\") if part.strip())

    return Slice(
        path=path,
        series=text("0020|000e"),
        description=text("0008|103e"),
        size=(io.GetDimensions(0), io.GetDimensions(1)),
        frames=int(text("0028|0008") or 1),
        components=io.GetNumberOfComponents(),
        dtype=stored_type(io).name,
        position=numbers("0020|0032"),
        orientation=numbers("0020|0037"),
        spacing=numbers("0028|0030"),
        thickness=numbers("0018|0050"),
        tilt=numbers("0018|1120"),
    )


DICOM_REQUIREMENTS = "pip install -r requirements-dicom.txt"


def frames_of(file: Slice) -> list[Slice]:
    """Return the frames of a multi-frame file as slices, or the file unchanged if it gives no positions of frames.

    Args:
        file: the header of the file as read by GDCM.

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
    """Read the rescaled frames of a file, each `(X, Y)`; the type is float32 if rescaling changes the values."""
    from pydicom import dcmread

    dataset = dcmread(path)
    return [
        frame.T if (slope, intercept) == (1, 0) else (frame.T * slope + intercept).astype(np.float32)
        for frame, (slope, intercept) in zip(
            dataset.pixel_array, map(_rescaling, _functional_groups(dataset)), strict=True
        )
    ]


def _functional_groups(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the functional groups of each frame by name, including shared groups; empty if the file has none."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    for own in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        yield {element.keyword: element.value[0] for groups in (shared[0], own) for element in groups if element.value}


def _numbers(groups: dict[str, Any], group: str, name: str) -> tuple[float, ...]:
    """Return an element of a functional group as numbers; empty if the file does not give it."""
    value = groups[group].get(name) if group in groups else None
    return () if value is None else tuple(map(float, np.atleast_1d(value)))


def _rescaling(groups: dict[str, Any]) -> tuple[float, float]:
    """Return slope and intercept of a frame."""
    slope, intercept = (
        _numbers(groups, "PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept")
    )
    return (slope or (1.0,))[0], (intercept or (0.0,))[0]


def _type_of(dataset: Any) -> str:
    """Return the NumPy name of the type of the stored numbers."""
    return f"{'int' if dataset.get('PixelRepresentation') else 'uint'}{dataset.get('BitsAllocated', 16)}"
