# SPDX-License-Identifier: Apache-2.0
"""The files that are written for a segmentation."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch

from scripts.errors import UserError
from scripts.inference.outputs import SegmentationWriter
from scripts.inference.segmenter import ClassSums, Segmentation
from tests.volume_files import oblique

NAMES = ["background", "liver", "spleen"]


@pytest.fixture
def result() -> Segmentation:
    classes = np.zeros((4, 3, 2), np.uint8)
    classes[0], classes[1] = 1, 2
    sums = ClassSums(3)
    sums.add(torch.eye(3)[torch.as_tensor(classes).long()].movedim(-1, 0), torch.as_tensor(classes).long())
    return Segmentation("scans/a.nrrd", oblique(), classes, sums)


def volume(path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_label_volume_has_the_declared_values_on_the_grid_of_the_image(result, tmp_path) -> None:
    path = SegmentationWriter(tmp_path, NAMES, [0, 10, 300], checkpoint="model.pt").write(result, "a")
    assert path == tmp_path / "a_seg.nii.gz"
    np.testing.assert_array_equal(volume(path), np.array([0, 10, 300])[result.classes])
    np.testing.assert_allclose(nibabel.load(path).affine, oblique(), atol=1e-5)
    sidecar = json.loads((tmp_path / "a_seg.json").read_text())
    assert sidecar["labels"] == {"0": "background", "10": "liver", "300": "spleen"}
    assert (sidecar["image"], sidecar["checkpoint"], sidecar["confidence"]) == ("scans/a.nrrd", "model.pt", 1.0)


def test_only_the_volumes_of_a_result_are_written(result, tmp_path) -> None:
    SegmentationWriter(tmp_path, NAMES, postfix="").write(result, "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "a.json"}
    result.confidence = np.full((4, 3, 2), 0.5, np.float32)
    result.uncertainty = np.full((4, 3, 2), 0.25, np.float32)
    result.probabilities = np.full((4, 3, 2, 3), 1 / 3, np.float32)
    SegmentationWriter(tmp_path / "all", NAMES).write(result, "a")
    assert np.unique(volume(tmp_path / "all/a_confidence.nii.gz")) == 0.5
    assert np.unique(volume(tmp_path / "all/a_uncertainty.nii.gz")) == 0.25
    assert volume(tmp_path / "all/a_probabilities.nii.gz").shape == (4, 3, 2, 3)


def test_the_format_can_be_that_of_the_image(result, tmp_path) -> None:
    assert SegmentationWriter(tmp_path, NAMES, output_format="input").write(result, "a").name == "a_seg.nrrd"
    result.image = ["scans/t1.mha", "scans/t2.nii"]
    assert SegmentationWriter(tmp_path, NAMES, output_format="input").write(result, "a").name == "a_seg.mha"


@pytest.mark.parametrize(
    ("options", "named"), [({"output_format": "dicom"}, "output_format"), ({"label_values": [0, 1]}, "label_values")]
)
def test_invalid_options_are_named(options, named, tmp_path) -> None:
    with pytest.raises(UserError, match=named):
        SegmentationWriter(tmp_path, NAMES, **options)
