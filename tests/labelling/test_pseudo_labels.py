# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels that were corrected in place, and which slices of a case are proposed for correction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing

from scripts.data.spec import CaseLists
from scripts.errors import UserError
from scripts.inference.alarms import ClassSums
from scripts.inference.run import SegmentationWriter
from scripts.inference.segmenter import Segmentation
from scripts.labelling.pseudo_labels import choose_slices, pseudo_label, usable_slices


def test_a_pseudo_label_that_was_corrected_in_place_is_kept(tmp_path) -> None:
    cases = CaseLists(unlabelled=[{"case": name, "image": f"{name}.nrrd"} for name in "ab"])
    segmented: list[str] = []

    def segmenter(image: str) -> Segmentation:
        segmented.append(image)
        classes = np.full((3, 4, 5), len(segmented) % 2, np.uint8)
        sums = ClassSums(2)
        sums.add(torch.eye(2)[torch.as_tensor(classes).long()].movedim(-1, 0), torch.as_tensor(classes).long())
        return Segmentation(image, np.eye(4), classes, sums, ("background", "organ"))

    def run() -> None:
        writer = SegmentationWriter(tmp_path, ["background", "organ"], postfix="")
        pseudo_label(cases, segmenter, writer, "corrected_labels")

    run()
    run()  # overwrites the files of the first run, which nobody has changed
    corrected = tmp_path / "a.nii.gz"
    corrected.write_bytes(b"corrected")
    with pytest.raises(UserError):
        run()
    assert corrected.read_bytes() == b"corrected" and segmented == ["a.nrrd", "b.nrrd"] * 2 + ["b.nrrd"]
    assert str(corrected) in (tmp_path / "failed.csv").read_text()


def volume(profile: list[float], axis: int = 2) -> np.ndarray:
    """An uncertainty whose sum over each slice across `axis` is that of `profile`."""
    shape = [2, 3, 4]
    shape[axis] = len(profile)
    along = [-1 if other == axis else 1 for other in range(3)]
    return np.ones(shape) * np.reshape(profile, along) * len(profile) / np.prod(shape)


def test_the_slices_with_the_largest_error_are_chosen_apart_from_each_other() -> None:
    #          0  1  2  3  4  5  6  7  8  9  10 11
    profile = [0, 1, 8, 9, 7, 1, 1, 2, 6, 5, 1, 0]
    # Ten slices hold the error, so two chosen ones lie at least 10 // 4 = 2 apart.
    chosen = choose_slices(volume(profile), np.eye(4), 2)
    assert (chosen.axis, chosen.indices) == (2, [3, 8])
    assert chosen.errors == pytest.approx([9, 6]) and chosen.total == pytest.approx(sum(profile))


def test_the_distance_shrinks_until_there_are_enough() -> None:
    chosen = choose_slices(volume([0, 3, 5, 4, 0]), np.eye(4), 5)
    assert chosen.indices == [0, 1, 2, 3, 4]
    assert choose_slices(volume([1, 2]), np.eye(4), 5).indices == [0, 1]


def test_few_slices_are_not_neighbours_either() -> None:
    rising = np.ones((8, 8, 19)) * 0.5 + np.linspace(0, 0.01, 19)
    assert min(np.diff(choose_slices(rising, np.diag([1.0, 1.0, 3.0, 1.0]), 5).indices)) >= 2


def test_a_volume_without_uncertainty_gives_slices_too() -> None:
    assert len(choose_slices(volume([0.0] * 9), np.eye(4), 3).indices) == 3


def test_slices_lie_across_the_axis_of_the_largest_voxels() -> None:
    chosen = choose_slices(volume([1, 5, 1, 4, 1], axis=1), np.diag([1.0, 4.0, 1.0, 1.0]), 2)
    assert (chosen.axis, chosen.indices) == (1, [1, 3])
    kept = np.broadcast_to(chosen.holds((2, 5, 4)), (2, 5, 4))
    assert kept.sum() == 2 * 2 * 4 and kept[:, [1, 3]].all()


AFFINES = {
    "R A S": np.diag([1.0, 1.0, 1.0, 1.0]),
    "L P I": np.diag([-1.0, -1.0, -1.0, 1.0]),
    "S L A": np.array([[0, -1.0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("size", [0.4, 1.0, 1.7, 2.0, 2.6])
@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_on_a_proposed_slice_survives_resampling_to_the_training_grid(name, axis, size) -> None:
    affine, count = AFFINES[name], 11
    usable = usable_slices(affine, axis, count, (size,) * 3)
    assert len(usable) >= 3 and (size > 1 or len(usable) == count)
    to_training = Compose([Orientation("RAS", labels=None), Spacing((size,) * 3, mode="nearest")])
    for index in usable.tolist():
        label = torch.zeros(1, count, count, count)
        label.select(axis + 1, index)[:] = 1
        assert to_training(MetaTensor(label, affine=torch.from_numpy(affine))).max() == 1, index
