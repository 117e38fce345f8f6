# SPDX-License-Identifier: Apache-2.0
"""Checks of one case: digests do not depend on how an image is stored; constant and extreme voxels are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import NormalizeIntensityd

from scripts.data.checks.case import content_digest, extreme_voxels, intensities, variance_of_extremes
from scripts.data.checks.finding import Kind
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request
from scripts.images.header import VolumeHeader
from scripts.images.read import read_volume
from tests.scan_folder import MACHINE, make_folder
from tests.volume_files import affine, oblique, save, stored_as, volume


def digest(path: Path) -> bytes:
    return content_digest(*read_volume(path))


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "ASL"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_digest_is_the_same_for_every_format_axis_order_and_type(tmp_path, axcodes, name, dtype) -> None:
    first = save(tmp_path / "first.nii", volume(), oblique())
    assert digest(save(tmp_path / name, *stored_as(volume().astype(dtype), oblique(), axcodes))) == digest(first)


def test_the_digest_changes_with_a_voxel_a_mirror_and_a_shape(tmp_path) -> None:
    other = volume()
    other[3, 2, 1] += 1
    arrays = [volume(), other, volume()[::-1], volume().reshape(7, 9, 5)]
    digests = {digest(save(tmp_path / f"{n}.nii", array, affine())) for n, array in enumerate(arrays)}
    assert len(digests) == len(arrays)


def test_minus_zero_has_the_digest_of_zero(tmp_path) -> None:
    ones = np.ones((4, 3, 2), np.float32)
    ones[0, 0, 0] = 0.0
    negative = ones.copy()
    negative[0, 0, 0] = -0.0
    assert digest(save(tmp_path / "a.nii", ones, affine())) == digest(save(tmp_path / "b.nii", negative, affine()))


def test_a_constant_channel_is_named(tmp_path) -> None:
    array = np.stack([volume(), np.full_like(volume(), -3)], axis=-1)
    findings = intensities(*read_volume(save(tmp_path / "a.nii", array, affine())))
    assert len(findings) == 1
    assert findings[0].kind is Kind.CONSTANT and "a.nii (channel 1)" in findings[0].sentence


SHAPE = (30, 24, 20)


def image(kind: str, dtype=np.float32) -> np.ndarray:
    """Two tissues, and extremes."""
    array = np.random.default_rng(0).normal(100, 10, SHAPE)
    array[:15] += 80
    if kind == "a voxel":
        array[2, 3, 4] = 30000
    elif kind == "a few voxels":
        array[2, 3:7, 4] = -20000
    elif kind == "both ends":
        array[5:7, 3, 4:6], array[9, 9, 9] = 25000, -25000
    return array.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("kind", ["a voxel", "a few voxels", "both ends"])
def test_a_few_voxels_with_all_the_variance_are_found(kind, dtype) -> None:
    array = image(kind, dtype)
    assert variance_of_extremes(array) > 0.9
    header = VolumeHeader("scans/a.nii", SHAPE, 1, np.eye(4), "float32", True)
    for intensity in (None, NormalizeIntensityd("image"), lambda _: 1 / 0):
        (finding,) = extreme_voxels(header, array[None], intensity)
        assert (finding.kind.title, finding.file) == ("few extreme voxels", "scans/a.nii")
    assert not extreme_voxels(header, array[None].clip(0, 250), None)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_share_equals_that_of_whole_arrays(order, monkeypatch) -> None:
    monkeypatch.setattr("scripts.data.checks.case.SLAB_VOXELS", 1000)
    array = image("both ends")
    clipped = np.clip(array.astype(float), *np.percentile(array, (0.1, 99.9)))
    assert variance_of_extremes(np.asarray(array, order=order)) == pytest.approx(1 - clipped.var() / array.var(), 1e-4)


def test_usual_images_have_no_finding() -> None:
    sparse = np.zeros(SHAPE, np.float32)
    sparse[10:14, 10:14, 10:14] = 500
    assert [variance_of_extremes(array) for array in (image("none"), sparse, np.ones(SHAPE))] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["a voxel", "a few voxels", "both ends"])
def test_the_planned_intensities_keep_tissues_apart(kind, tmp_path: Path) -> None:
    settings = []
    new_dataset(Request(make_folder(tmp_path), "mine", dry_run=True), MACHINE, settings.append)
    parser = ConfigParser()
    parser.read_config(_written(settings[1], tmp_path))
    array = torch.from_numpy(image(kind)[None])
    plain = NormalizeIntensityd("image")({"image": array})["image"]
    planned = parser.get_parsed_content("intensity")({"image": array})["image"]
    apart = [float(result[0, :15].median() - result[0, 15:].median()) for result in (plain, planned)]
    assert apart[0] < 0.5 < 1.5 < apart[1]


def _written(text: str, folder: Path) -> str:
    (folder / "plan.yaml").write_text(text.partition("would contain:")[2])
    return str(folder / "plan.yaml")
