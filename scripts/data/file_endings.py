# SPDX-License-Identifier: Apache-2.0
"""What makes a file an image by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

NIFTI = (".nii.gz", ".nii")
NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
ENDINGS = (*NIFTI, *NRRD, *METAIMAGE)
"""Of image files, in lower case; a DICOM series is a folder."""


def ending_of(path: str | Path) -> str | None:
    """The ending that makes a file an image (`.nii.gz`, lower case), `None` for another file."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


@contextmanager
def in_lower_case(path: str, beside: Sequence[str] = ()) -> Iterator[str]:
    """The path, or, where its ending is not in lower case, that of a link which is, for as long as the context.

    nibabel does not know `.Nii`, ITK neither `.MHA` nor `.MHD`; a NRRD it knows by its first bytes.

    Args:
        path: an image file.
        beside: names of the files in its folder that it refers to.
    """
    ending = ending_of(path)
    if ending is None or ending in NRRD or path.endswith(ending):
        yield path
        return
    with TemporaryDirectory() as folder:
        file = Path(path).resolve()
        link = Path(folder, f"image{ending}")
        link.symlink_to(file)
        for name in beside:
            Path(folder, name).symlink_to(file.parent / name)
        yield str(link)
