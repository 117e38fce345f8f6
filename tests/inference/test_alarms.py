# SPDX-License-Identifier: Apache-2.0
"""Each alarm is raised where its value leaves the range of training, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from scripts.data.training_cases import FLIPS, CaseMeasures, small_image
from scripts.data.weights import save_weights
from scripts.inference.alarms import AddConfidenced, Alarms, alarms_of
from scripts.inference.models import load_model
from scripts.inference.segmenter import MirroredNetwork

NAMES = ["background", "liver"]
SIDE = 16


def image(scale: float = 1.0, shape=(SIDE, SIDE, SIDE)) -> torch.Tensor:
    """A ramp from 0 to `scale` along the first axis."""
    return (torch.arange(shape[0]).float() / (shape[0] - 1) * scale)[None, :, None, None].repeat(1, 1, *shape[1:])


def liver(begin: int = 4, end: int = 8) -> torch.Tensor:
    classes = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.int64)
    classes[begin:end, 4:8, 4:8] = 1
    return classes


TRAINING = {
    "spacing_mm": [[0.9, 1.5]] * 3,
    "size_mm": [[14.0, 18.0]] * 3,
    "intensity": [[[value, value + 0.05] for value in np.percentile(image(), (1, 5, 25, 50, 75, 95, 99)).tolist()]],
    "structures": {
        "liver": {"volume_ml": [0.05, 0.07], "intensity": [[0.3, 0.45]], "at_border": False, "always": True}
    },
    "small": small_image(image()).flatten().tolist(),
    "flips": [[0]],
    "calibration": {"factor": 0.9, "predicted": [0.7, 0.8]},
}


def sentences(
    voxels: torch.Tensor | None = None, classes: torch.Tensor | None = None, spacing=(1.0, 1.0, 1.0), dice=0.75
) -> list[str]:
    case = CaseMeasures(image() if voxels is None else voxels, spacing, (1.0, 1.0, 1.0), 2)
    case.add(liver() if classes is None else classes)
    return Alarms(TRAINING, NAMES).sentences(case, dice)


def test_a_case_like_those_of_training_raises_none() -> None:
    assert sentences() == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"spacing": (1.0, 1.0, 5.0)}, ["along S", "5 mm", "0.9 to 1.5"]),
        ({"spacing": (0.5, 1.0, 1.0)}, ["along R", "0.5 mm"]),
        ({"voxels": image(2.0)}, ["Intensity", "percentile"]),
        ({"voxels": image().flip(1)}, ["R-L"]),
        ({"classes": liver(4, 14)}, ["Volume of liver", "0.16 ml", "0.05 to 0.07"]),
        ({"classes": liver(10, 14)}, ["Mean intensity of liver"]),
        ({"classes": liver(4, 4)}, ["liver"]),
        ({"dice": 0.5}, ["0.50", "0.7 to 0.8"]),
    ],
)
def test_what_leaves_the_range_is_said_with_both_values(case, words) -> None:
    found = sentences(**case)
    assert any(all(word in sentence for word in words) for sentence in found), found


def test_a_small_excess_raises_none() -> None:
    assert sentences(spacing=(1.8, 0.75, 1.0), dice=0.69, classes=liver(4, 9)) == []


def test_a_structure_at_the_border_of_the_image_is_named() -> None:
    classes = liver()
    classes[5, 5, :4] = 1
    (sentence,) = sentences(classes=classes)
    assert "liver" in sentence and "border" in sentence


def test_half_an_image_is_too_small() -> None:
    half = CaseMeasures(image(shape=(SIDE, SIDE, 8)), (1.0,) * 3, (1.0,) * 3, 2)
    half.add(liver()[..., :8])
    found = Alarms(TRAINING, NAMES).sentences(half, 0.75)
    assert any("along S 8 mm" in sentence and "14 to 18" in sentence for sentence in found), found


def test_spacing_is_that_of_the_axes_of_the_body() -> None:
    """The file's axes point to A, S and R; its voxels measure 2, 3 and 4 mm."""
    original = np.zeros((4, 4))
    original[1, 0], original[2, 1], original[0, 2], original[3, 3] = 2, 3, 4, 1
    prepared = MetaTensor(image(), affine=torch.eye(4))
    prepared.meta["original_affine"] = original
    assert Alarms(TRAINING, NAMES).measures(prepared).spacing_mm == pytest.approx([4, 2, 3])


def test_alarms_come_with_the_weights(tmp_path) -> None:
    network = nn.Conv3d(1, 2, 1)
    save_weights(network, tmp_path / "new.pt", cases=TRAINING)
    save_weights(network, tmp_path / "old.pt")
    torch.jit.trace(network, torch.zeros(1, 1, 4, 4, 4)).save(tmp_path / "model.ts")
    for checkpoint in (tmp_path / "new.pt", [tmp_path / "new.pt", tmp_path / "old.pt"]):
        model = load_model(checkpoint, nn.Conv3d(1, 2, 1), "cpu")
        for predictor in (model, MirroredNetwork(model, [0])):
            alarms = alarms_of(predictor, NAMES)
            assert alarms is not None and alarms.training == TRAINING and alarms.dice_factor == 0.9
    for name in ("old.pt", "model.ts"):
        assert alarms_of(MirroredNetwork(load_model(tmp_path / name, nn.Conv3d(1, 2, 1), "cpu")), NAMES) is None


def test_flips_are_all_combinations_of_axes() -> None:
    assert len(FLIPS) == len({tuple(axes) for axes in FLIPS}) == 7


def test_confidence_of_a_class_is_the_soft_dice_of_its_voxels() -> None:
    probabilities = torch.tensor([[0.8, 0.4], [0.2, 0.6]]).reshape(2, 2, 1, 1)
    item = AddConfidenced("pred")({"pred": probabilities})
    assert item["confidence"] == pytest.approx([2 * 0.8 / (1 + 1.2), 2 * 0.6 / (1 + 0.8)])
