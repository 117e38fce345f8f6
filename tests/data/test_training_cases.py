# SPDX-License-Identifier: Apache-2.0
"""What is measured of training cases, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Lambda

from scripts.data.spec import DatasetSpec
from scripts.data.training_cases import SIDE, CaseMeasures, TrainingCases, flip_gains, small_image
from scripts.errors import UserError
from tests.volume_files import affine, save, volume

NAMES = ["background", "liver", "spleen"]


def measures(image: torch.Tensor | None = None, spacing=(2.0, 1.0, 0.5)) -> CaseMeasures:
    image = torch.arange(6 * 5 * 4).reshape(1, 6, 5, 4).float() if image is None else image
    return CaseMeasures(image, (4.0, 1.0, 0.5), spacing, len(NAMES))


def labels() -> torch.Tensor:
    classes = torch.zeros(6, 5, 4, dtype=torch.int8)
    classes[2:4, 1:3, 1:3] = 1
    classes[4:, 3, 2] = 2
    return classes


def test_structures_have_the_volume_intensity_and_border_of_their_voxels() -> None:
    case = measures()
    case.add(labels())
    found = case.structures(NAMES)
    assert found["liver"]["volume_ml"] == pytest.approx(8 * 1.0 / 1000)
    # Voxel (x, y, z) has the value 20 x + 4 y + z; the means of the indices are 2.5, 1.5 and 1.5.
    assert found["liver"]["intensity"] == pytest.approx([20 * 2.5 + 4 * 1.5 + 1.5])
    assert found["spleen"]["intensity"] == pytest.approx([20 * 4.5 + 4 * 3 + 2])
    assert (found["liver"]["at_border"], found["spleen"]["at_border"]) == (False, True)
    assert case.size_mm == [12.0, 5.0, 2.0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_may_come_in_parts(axis) -> None:
    whole, parts = measures(), measures()
    whole.add(labels())
    side = labels().shape[axis]
    for start in range(0, side, 2):
        parts.add(labels().narrow(axis, start, min(2, side - start)), axis, start)
    assert parts.structures(NAMES) == whole.structures(NAMES)


def test_an_inner_end_of_a_part_is_no_border() -> None:
    case = measures()
    classes = torch.zeros(6, 5, 4, dtype=torch.int8)
    classes[2, 2, 2] = 1  # the first plane of the second part
    case.add(classes[:2], 0, 0)
    case.add(classes[2:], 0, 2)
    assert not case.structures(NAMES)["liver"]["at_border"]


def test_an_absent_structure_has_no_intensity() -> None:
    case = measures()
    case.add(torch.zeros(6, 5, 4, dtype=torch.int8))
    assert case.structures(NAMES)["liver"] == {"volume_ml": 0.0, "intensity": None, "at_border": False}


def test_volumes_and_borders_are_those_of_the_written_volume() -> None:
    """A component of the liver at the border was removed; the file has voxels of a quarter of the size."""
    case = measures()
    raw = labels()
    raw[0, 0, 0] = 1
    case.add(raw)
    case.note_written(np.repeat(labels().numpy(), 4, axis=0), 0.25 / 1000)
    found = case.structures(NAMES)
    assert found["liver"]["volume_ml"] == pytest.approx(8 / 1000) and not found["liver"]["at_border"]
    assert found["spleen"]["at_border"] and found["liver"]["intensity"] is not None
    case.note_written(np.zeros((6, 5, 4), np.uint8), 0.001)
    assert case.structures(NAMES)["liver"]["intensity"] is None


def test_a_mirrored_image_is_recognised() -> None:
    image = torch.arange(16).float()[None, :, None, None].repeat(1, 1, 12, 10)
    small = small_image(image)
    assert small.shape == (SIDE, SIDE, SIDE)
    gains = flip_gains(small_image(image.flip(1)), small)
    assert gains[(0,)] == pytest.approx(2.0) and gains[(1,)] == pytest.approx(0.0) and gains[(0, 2)] == gains[(0,)]
    assert small_image(torch.ones(1, 8, 8, 8)).abs().max() == 0  # no NaN


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec("scans", label_names=NAMES, spacing=(2.0, 1.0, 0.5))


def cached(tmp_path: Path, *cases: tuple[float, torch.Tensor | None]) -> CacheDataset:
    """Cases of a spacing in the file along R, and a label; the image is a ramp times the spacing."""
    items = []
    for number, (spacing, label) in enumerate(cases):
        file = save(tmp_path / f"{spacing}_{number}.nii.gz", volume((3, 3, 3)), affine((spacing, 1.0, 0.5)))
        items.append({"image": str(file), **({} if label is None else {"label": label})})

    def load(item: dict) -> dict:
        ramp = torch.arange(6 * 5 * 4).reshape(1, 6, 5, 4).float() * float(Path(item["image"]).name.split("_")[0])
        return {**item, "image": ramp}

    return CacheDataset(items, Lambda(load), num_workers=None, progress=False)


def test_ranges_are_those_of_all_images_and_of_whole_labels(spec, tmp_path) -> None:
    part = labels()[None].clone()
    part[0, 0] = -1  # ignored voxels
    larger = labels()[None].clone()
    larger[0, 1, 1, 1] = 1
    labelled = cached(tmp_path / "l", (1.0, labels()[None]), (2.0, larger), (3.0, part))
    content = TrainingCases(labelled, cached(tmp_path / "u", (5.0, None)), spec).content
    assert content is not None and json.loads(json.dumps(content)) == content
    assert (content["images"], content["labels"]) == (4, 2)
    assert content["spacing_mm"] == [[1.0, 5.0], [1.0, 1.0], [0.5, 0.5]]
    assert content["intensity"][0][3] == [59.5, 5 * 59.5]  # medians of the smallest and of the largest ramp
    liver = content["structures"]["liver"]
    assert liver["volume_ml"] == pytest.approx([0.008, 0.009]) and liver["always"] and not liver["at_border"]
    assert content["structures"]["spleen"]["at_border"]
    assert content["small"] is None  # too few images to compare orientations


def test_flips_that_every_image_contradicts_are_kept(spec, tmp_path) -> None:
    images = cached(tmp_path, *[(1.0 + number, None) for number in range(6)])
    content = TrainingCases(images, CacheDataset([], None), spec).content
    assert content is not None and len(content["small"]) == SIDE**3
    assert [0] in content["flips"] and [1] in content["flips"]


def test_datasets_without_a_cache_are_not_measured(spec) -> None:
    assert TrainingCases(Dataset([]), Dataset([]), spec).content is None


def test_the_calibration_is_that_of_an_earlier_cross_validation(spec, tmp_path) -> None:
    file = tmp_path / "crossval.json"
    assert TrainingCases(Dataset([]), Dataset([]), spec, file).calibration is None
    file.write_text('{"calibration": {"factor": 0.9}}')
    assert TrainingCases(Dataset([]), Dataset([]), spec, file).calibration == {"factor": 0.9}
    file.write_text("{")
    with pytest.raises(UserError, match=r"crossval\.json"):
        TrainingCases(Dataset([]), Dataset([]), spec, file)
