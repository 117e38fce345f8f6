# SPDX-License-Identifier: Apache-2.0
"""Checks of one case: the digest does not depend on how an image is stored, and a constant channel is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.data.checks.case import content_digest, intensities
from scripts.data.checks.finding import Kind
from scripts.images.read import read_volume
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
