# SPDX-License-Identifier: Apache-2.0
"""Units of length and spaces of NRRD and MetaImage, which ITK does not take into account."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.data.checks.finding import Kind
from scripts.data.checks.grid import orientation_given
from scripts.errors import UserError
from scripts.images.read import read_header

DIRECTIONS = "space directions: (0,1500,0) (1500,0,0) (0,0,2000)"
IN_MM = np.array([[0, -1.5, 0, -7], [-1.5, 0, 0, -8], [0, 0, 2, 9], [0, 0, 0, 1]])


def nrrd(path: Path, *fields: str, sizes: str = "4 3 5") -> Path:
    lines = ["NRRD0005", "type: uchar", f"dimension: {len(sizes.split())}", f"sizes: {sizes}", "encoding: raw", *fields]
    path.write_bytes("\n".join([*lines, "", ""]).encode("utf-8") + bytes(120))
    return path


def metaimage(path: Path, *fields: str, sizes: str = "4 3 5") -> Path:
    lines = [f"NDims = {len(sizes.split())}", f"DimSize = {sizes}", "ElementType = MET_UCHAR", *fields]
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode("utf-8") + bytes(60))
    return path


@pytest.mark.parametrize("unit", ["um", "µm", "micron", "Micrometers"])
def test_directions_and_origin_of_a_nrrd_are_in_the_units_of_its_space(tmp_path, unit):
    units = f'space units: "{unit}" "{unit}" "{unit}"'
    path = nrrd(tmp_path / "a.nrrd", "space: LPS", DIRECTIONS, units, "space origin: (7000,8000,9000)")
    np.testing.assert_allclose(read_header(path).affine, IN_MM)


def test_each_axis_of_the_space_has_a_unit_of_its_own(tmp_path):
    directions, units = "space directions: (0,0.15,0) (1500,0,0) (0,0,2)", 'space units: "um" "cm" "mm"'
    path = nrrd(tmp_path / "a.nrrd", "space: LPS", directions, units, "space origin: (7000,0.8,9)")
    np.testing.assert_allclose(read_header(path).affine, IN_MM)


@pytest.mark.parametrize("first", [True, False])
def test_units_of_a_nrrd_without_a_space_are_those_of_its_axes(tmp_path, first):
    spacings, units, sizes = ["1500", "0.15", "2"], ['"um"', '"cm"', '""'], ["4", "3", "5"]
    for values, of_channels in ((spacings, "nan"), (units, '"counts per s"'), (sizes, "2")):
        values.insert(0 if first else 3, of_channels)
    fields = [f"spacings: {' '.join(spacings)}", f"units: {' '.join(units)}"]
    header = read_header(nrrd(tmp_path / "a.nrrd", *fields, sizes=" ".join(sizes)))
    assert header.spacing == pytest.approx((1.5, 1.5, 2.0)) and header.channels == 2


@pytest.mark.parametrize(("unit", "factor"), [("um", 0.001), ("cm", 10.0), ("mm", 1.0), ("?", 1.0)])
def test_lengths_of_a_metaimage_are_in_its_distance_units(tmp_path, unit, factor):
    fields = [f"DistanceUnits = {unit}", "ElementSpacing = 3 4 5", "Offset = 7 8 9"]
    header = read_header(metaimage(tmp_path / "a.mha", *fields))
    np.testing.assert_allclose(header.affine[:3], np.array([[-3, 0, 0, -7], [0, -4, 0, -8], [0, 0, 5, 9]]) * factor)
    picture = metaimage(tmp_path / "b.mha", fields[0], "ElementSpacing = 3 4", sizes="12 5")
    assert read_header(picture).spacing == pytest.approx((3 * factor, 4 * factor, 1.0))  # no third axis has a unit


def test_an_unknown_unit_is_refused(tmp_path):
    files = [
        nrrd(tmp_path / "a.nrrd", "space: LPS", DIRECTIONS, 'space units: "furlong" "mm" "mm"'),
        metaimage(tmp_path / "a.mha", "DistanceUnits = furlong"),
    ]
    for path in files:
        with pytest.raises(UserError, match="furlong") as caught:
            read_header(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("space", "oriented"),
    [
        ("scanner-xyz", False),
        ("3D-right-handed", False),
        ("3D-left-handed", False),
        ("right-anterior-superior", True),
        ("LPS", True),
        ("Left-Posterior-Superior", True),
    ],
)
def test_the_orientation_is_assumed_unless_the_space_is_anatomical(tmp_path, space, oriented):
    header = read_header(nrrd(tmp_path / "a.nrrd", f"space: {space}", DIRECTIONS))
    assert header.oriented == oriented
    assert [finding.kind for finding in orientation_given(header)] == [Kind.NO_ORIENTATION] * (not oriented)
