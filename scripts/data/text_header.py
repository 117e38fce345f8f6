# SPDX-License-Identifier: Apache-2.0
"""What ITK does not tell of the headers of NRRD and MetaImage files, which are lines of text."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from scripts.data.file_endings import NRRD, ending_of

LONGEST = 1 << 20  # bytes; a header is a few hundred
RANGE_KINDS = re.compile(r"list|vector|point|normal|color|complex|quaternion|matrix|stub|scalar", re.IGNORECASE)
NO_DIRECTION = ("none", "nan")


def is_oriented(path: str) -> bool:
    """Whether the header says where the axes point.

    A NRRD must name its space (`space: left-posterior-superior`) and have `space directions`; a MetaImage must have
    one of the names of its matrix.
    """
    fields = _fields(path)
    if ending_of(path) in NRRD:
        return "space" in fields and "space directions" in fields
    return not {"transformmatrix", "rotation", "orientation"}.isdisjoint(fields)


def data_files(path: str) -> list[str]:
    """Names of the files, beside a MetaImage header, that hold its voxels."""
    name = _fields(path).get("elementdatafile", "LOCAL")
    return [] if name.upper().split()[0] in ("LOCAL", "LIST") or Path(name).is_absolute() else [name]


def with_list_axis(path: str) -> bytes | None:
    """A detached NRRD header in which the one axis without a direction is of kind `list`; `None` if that is needless.

    ITK takes an axis for channels only by its kind, which some writers leave out, and then counts four axes of space.
    """
    if ending_of(path) not in NRRD:
        return None
    fields, lines = _fields(path), _lines(path)
    axes = re.findall(r"\([^)]*\)|\S+", fields.get("space directions") or fields.get("spacings", ""))
    kinds = fields.get("kinds", "").split() or ["domain"] * len(axes)
    without = [axis for axis, direction in enumerate(axes) if direction.lower() in NO_DIRECTION]
    if len(without) != 1 or len(kinds) != len(axes) or RANGE_KINDS.search(kinds[without[0]]):
        return None
    kinds = ["list" if axis == without[0] else "domain" for axis in range(len(axes))]
    header = [line for line in lines if not line.lower().startswith(("kinds:", "data file:", "datafile:"))]
    header.append(f"kinds: {' '.join(kinds)}")
    data = fields.get("data file") or fields.get("datafile")
    if data is None:
        header += [f"line skip: {len(lines) + 1}", f"data file: {Path(path).resolve()}"]
    else:
        header.append(f"data file: {Path(path).resolve().parent / data}")
    return ("\n".join(header) + "\n").encode("utf-8", "surrogateescape")


def _lines(path: str) -> list[str]:
    """A NRRD header ends with an empty line (or the file), a MetaImage's with the name of its data."""
    with open(path, "rb") as file:
        text = file.read(LONGEST).decode("utf-8", "surrogateescape")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if ending_of(path) in NRRD:
        return list(takewhile(bool, lines))
    before = list(takewhile(lambda line: not line.lower().startswith("elementdatafile"), lines))
    return lines[: len(before) + 1]


def _fields(path: str) -> dict[str, str]:
    """Names in lower case, values as they stand."""
    mark = ":" if ending_of(path) in NRRD else "="
    pairs = (line.partition(mark) for line in _lines(path) if not line.startswith("#"))
    return {name.strip().lower(): value.strip() for name, found, value in pairs if found}
