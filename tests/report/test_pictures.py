# SPDX-License-Identifier: Apache-2.0
"""Contours lie where the voxels are, and pictures go through the largest error."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from scripts.images.write import write_volume
from scripts.report.cases import ReportCase
from scripts.report.pictures import CaseVolumes, draw_case, largest_error, outline
from tests.report.output_folder import SPACING, ball, rotated

PLENTY = 10**9


def points_of(path: str) -> np.ndarray:
    """The corners of all outlines of an SVG path, `(N, 2)`."""
    found = []
    for part in path.removesuffix("z").split("z"):
        start, moves = part.removeprefix("M").split("l")
        steps = np.array([*start.split(), *moves.split()], float).reshape(-1, 2)
        found.append(np.cumsum(steps, axis=0))
    return np.concatenate(found)


@pytest.fixture
def volume_of_a_ball(tmp_path: Path) -> tuple[ReportCase, np.ndarray, float]:
    """A case whose reference is a ball of 12 mm, its centre in mm (RAS), and the radius."""
    shape, affine, radius = (30, 22, 14), rotated(), 12.0
    centre = np.array([17.0, 14.0, 20.0])
    mask = ball(shape, centre, radius).astype(np.uint8)
    for name, volume in (("p", mask), ("r", mask), ("i", mask.astype(np.float32))):
        write_volume(tmp_path / f"{name}.nii.gz", volume, affine)
    case = ReportCase("ball", str(tmp_path / "i.nii.gz"), tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", None, {"b": 1})
    return case, (affine @ [*(centre / SPACING), 1])[:3], radius


def test_a_contour_lies_within_a_pixel_of_the_shape(volume_of_a_ball) -> None:
    case, centre, radius = volume_of_a_ball
    canonical = nibabel.as_closest_canonical(nibabel.load(case.prediction))
    index = (np.linalg.inv(canonical.affine) @ [*centre, 1])[:3]
    sizes = np.array(canonical.header.get_zooms()[:3], float)
    for plane in draw_case(case.load(), PLENTY):
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane["name"]]
        across, down = (other for other in range(3) if other != axis)
        shape = canonical.shape
        assert (plane["columns"], plane["rows"]) == (shape[across], shape[down])  # all of it: the margin is wide
        assert plane["width_mm"] == pytest.approx(shape[across] * sizes[across])
        assert plane["height_mm"] == pytest.approx(shape[down] * sizes[down])
        # On the picture, to the left and upwards are R or A, and A or S.
        expected = [(shape[a] - 0.5 - index[a]) * sizes[a] for a in (across, down)]
        checked = 0
        for each in plane["slices"]:
            off_centre = (each["number"] - 1 - index[axis]) * sizes[axis]
            lines = dict(each["paths"])
            if abs(off_centre) > 0.8 * radius:
                continue
            points = points_of(lines["line prediction s1"]) / 2 * [sizes[across], sizes[down]]
            distance = np.linalg.norm(points - expected, axis=1)
            circle = np.sqrt(radius**2 - off_centre**2)
            assert np.abs(distance - circle).max() < max(sizes[across], sizes[down])
            assert np.ptp(points, axis=0) == pytest.approx(2 * circle, abs=2 * max(sizes[across], sizes[down]))
            checked += 1
        assert checked >= 4


def test_a_picture_shows_the_slice_of_its_contours(volume_of_a_ball) -> None:
    case, _, _ = volume_of_a_ball
    for plane in draw_case(case.load(), PLENTY):
        middle = plane["slices"][plane["start"]]
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(middle["image"]))).convert("L"))
        assert grey.shape == (plane["rows"], plane["columns"])
        inside = points_of(dict(middle["paths"])["line reference s1"]).mean(axis=0) / 2
        assert grey[int(inside[1]), int(inside[0])] > 200 and grey[0, 0] < 50


def test_an_image_on_another_grid_is_put_under_the_contours(volume_of_a_ball, tmp_path: Path) -> None:
    case, centre, radius = volume_of_a_ball
    axes = np.meshgrid(*(np.arange(-30, 30, 2.0) + c for c in centre), indexing="ij")
    far = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) <= radius**2
    affine = np.diag([2.0, 2.0, 2.0, 1])
    affine[:3, 3] = centre - 30
    write_volume(tmp_path / "other.nii.gz", far.astype(np.float32), affine)
    case.image = str(tmp_path / "other.nii.gz")
    volumes = case.load()
    assert volumes.image is not None and volumes.reference is not None
    assert ((volumes.image > 0.5) == (volumes.reference > 0)).mean() > 0.97


def test_an_outline_has_the_corners_of_its_pixels_and_a_hole_its_own() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    points = points_of(outline(mask)) / 2
    # Half a pixel outside the centres of the outermost pixels.
    assert points.min(axis=0).tolist() == [2, 1] and points.max(axis=0).tolist() == [5, 4]
    assert outline(mask).count("M") == 1
    mask[2, 3] = False
    assert outline(mask).count("M") == 2
    assert outline(np.zeros((3, 3), bool)) == ""


def test_the_largest_error_is_a_lump_and_not_a_thin_rim() -> None:
    reference = np.zeros((40, 30, 20), np.uint8)
    reference[5:35, 5:25, 4:16] = 1
    prediction = reference.copy()
    prediction[5, 5:25, 4:16] = 0  # 240 voxels in a plane
    prediction[20:24, 10:14, 8:12] = 0  # 64 voxels together
    place = largest_error(CaseVolumes((1.0, 1.0, 1.0), prediction, reference))
    assert 20 <= place[0] < 24 and 10 <= place[1] < 14 and 8 <= place[2] < 12


def test_without_reference_or_structure_there_still_is_a_place() -> None:
    empty = np.zeros((6, 8, 10), np.uint8)
    assert largest_error(CaseVolumes((1.0, 1.0, 1.0), empty, empty)) == (3, 4, 5)
    uncertainty = np.zeros(empty.shape, np.float32)
    uncertainty[1, 2, 3] = 0.9
    volumes = CaseVolumes((1.0, 1.0, 1.0), empty, None, None, uncertainty)
    assert largest_error(volumes) == (1, 2, 3)
    (axial, *_) = draw_case(volumes, PLENTY)
    kinds = [kind for kind, _ in axial["slices"][axial["start"]]["paths"]]
    assert kinds == ["area uncertain u25", "area uncertain u50", "area uncertain u75"]


def test_errors_are_told_apart() -> None:
    reference, prediction = (np.zeros((8, 8, 8), np.uint8) for _ in range(2))
    reference[1:3, 1:3, 1:7], prediction[5:7, 5:7, 1:7] = 1, 1
    reference[1:3, 5:7, 1:7], prediction[1:3, 5:7, 1:7] = 1, 2
    (axial, *_) = draw_case(CaseVolumes((1.0, 1.0, 1.0), prediction, reference), PLENTY)
    paths = dict(axial["slices"][axial["start"]]["paths"])
    # The front right corner is drawn at the upper left.
    assert points_of(paths["area missed e1"]).mean(axis=0) / 2 == pytest.approx([6, 6])
    assert points_of(paths["area extra e1"]).mean(axis=0) / 2 == pytest.approx([2, 2])
    assert points_of(paths["area confused e2 e1"]).mean(axis=0) / 2 == pytest.approx([6, 2])


def test_fewer_slices_are_kept_if_bytes_are_few(volume_of_a_ball) -> None:
    def size(planes) -> int:
        return sum(
            len(each["image"]) + sum(map(len, dict(each["paths"]).values())) for p in planes for each in p["slices"]
        )

    volumes = volume_of_a_ball[0].load()
    whole = draw_case(volumes, PLENTY)
    half, least = draw_case(volumes, size(whole) // 2), draw_case(volumes, 0)
    assert size(half) <= size(whole) // 2
    for plane, fewer, one in zip(whole, half, least, strict=True):
        assert len(one["slices"]) == 1 < len(fewer["slices"]) < len(plane["slices"])
        for each in (fewer, one):
            assert each["slices"][each["start"]]["number"] == plane["slices"][plane["start"]]["number"]
