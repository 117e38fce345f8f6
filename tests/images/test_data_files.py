# SPDX-License-Identifier: Apache-2.0
"""Voxels that are in other files than the header of a MetaImage or NRRD, which names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.images.read import read_volume
from tests.images.test_read import DIRECTIONS, refusal
from tests.volume_files import affine, save, volume

SLICES = [f"part/s{k:02d}.raw" for k in range(1, 6)]
SPLIT = {
    "one file": ("a b.raw",),
    "one file in a folder": ("part/a [1].raw",),
    "list": ("LIST", *SLICES),
    "series": ("part/s%02d.raw 1 5 1",),
}


def detached(path: Path, array: np.ndarray, given: tuple[str, ...]) -> Path:
    """Write a header whose voxels are in the file or files `given`, a value of `SPLIT`."""
    x, y, z = array.shape
    if path.suffix.lower() == ".mhd":
        fields = f"NDims = 3\nDimSize = {x} {y} {z}\nElementType = MET_SHORT\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        field = "ElementDataFile = "
    else:
        fields = f"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: {x} {y} {z}\nendian: little\nencoding: raw\n"
        fields, field = f"{fields}space directions: {DIRECTIONS}\n", "data file: "
    path.write_text(f"{fields}{field}" + "\n".join(given) + "\n")
    parts = [array] if len(given) == 1 and "%" not in given[0] else [array[:, :, k] for k in range(z)]
    for name, part in zip(SLICES if len(parts) > 1 else given, parts, strict=True):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(part.tobytes(order="F"))
    return path


NAMED = [(name, split) for name in ("a.mhd", "A.MHD", "a.nhdr", "A.NHDR") for split in SPLIT]


@pytest.mark.parametrize(("name", "split"), [*NAMED, ("a.mhd", "series without a step")])
def test_voxels_are_read_from_the_files_that_a_header_names(tmp_path, name, split):
    array = volume((4, 3, 5))
    # MetaImage allows a series without a step, at which ITK ends the process with a division by zero.
    path = detached(tmp_path / name, array, SPLIT.get(split, ("part/s%02d.raw 1 5",)))
    np.testing.assert_array_equal(read_volume(path)[1][0], array)
    (tmp_path / "store").mkdir()
    path.rename(tmp_path / "store" / "1f2e")  # as data managers keep files, with the data still beside the link
    path.symlink_to("store/1f2e")
    np.testing.assert_array_equal(read_volume(path)[1][0], array)


@pytest.mark.parametrize("name", ["a.mhd", "A.MHD", "a.nhdr"])
@pytest.mark.parametrize("split", ["one file in a folder", "list", "series"])
def test_a_missing_file_of_voxels_is_named(tmp_path, name, split):
    path = detached(tmp_path / name, volume((4, 3, 5)), SPLIT[split])
    lost = max(tmp_path.rglob("*.raw"))
    lost.unlink()
    assert str(lost.relative_to(tmp_path)) in refusal(path)


def test_a_series_of_files_that_cannot_be_counted_is_refused(tmp_path):
    path = detached(tmp_path / "a.mhd", volume((4, 3, 5)), ("part/s%02d.raw one 5",))
    assert "part/s%02d.raw one 5" in refusal(path)


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_a_header_without_its_data_file_is_refused_by_name(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", volume(), affine())
    (tmp_path / "a.raw").unlink()
    assert refusal(path)
