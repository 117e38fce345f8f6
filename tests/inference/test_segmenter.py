# SPDX-License-Identifier: Apache-2.0
"""The segmenter: results on the grid of the file, confidence computed by hand, and test-time mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from scripts.errors import UserError
from scripts.inference.alarms import ClassSums, normalised_entropy
from scripts.inference.segmenter import EmptyWindowsSkipped, MirroredNetwork, Segmenter
from tests.volume_files import oblique, save

# ---------------------------------------------------------------- the segmenter

NAMES = ["background", "left", "right"]


def brightness(windows: torch.Tensor) -> torch.Tensor:
    """Class 1 for values around 1, class 2 for values around 2."""
    return torch.cat([-10 * (windows - value).square() for value in (0.0, 1.0, 2.0)], dim=1)


def segmenter(predictor=brightness, **options) -> Segmenter:
    preprocessing = Compose(
        [
            LoadImaged("image", reader="scripts.images.monai.VolumeReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear"),
        ]
    )
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0.5)
    return Segmenter(preprocessing, inferer, predictor, **{"in_channels": 1, "label_names": NAMES, **options})


@pytest.fixture
def scan(tmp_path):
    """Two blocks of class 1, the first larger, and one of class 2, on an oblique grid."""
    image = np.zeros((24, 18, 14), np.float32)
    image[2:10, 3:14, 2:12], image[17:22, 12:17, 2:7], image[12:22, 2:9, 8:13] = 1, 1, 2
    return save(tmp_path / "scan.nii.gz", image, oblique((1.5, 1.6, 1.4))), image


def test_a_result_is_on_the_grid_of_the_file_and_has_the_requested_volumes(scan) -> None:
    path, image = scan
    result = segmenter()(str(path))
    assert result.image == str(path) and result.classes.shape == image.shape
    np.testing.assert_allclose(result.affine, oblique((1.5, 1.6, 1.4)), atol=1e-5)
    assert np.mean(result.classes == image) > 0.9  # borders are blurred by resampling
    assert (result.confidence, result.uncertainty, result.probabilities) == (None, None, None)
    full = segmenter(confidence=True, uncertainty="true", probabilities=True)(str(path))
    assert full.probabilities.shape == (*image.shape, 3)
    np.testing.assert_array_equal(full.probabilities.argmax(-1), result.classes)
    np.testing.assert_array_equal(full.probabilities.max(-1), full.confidence)
    assert full.uncertainty.shape == image.shape
    assert segmenter(confidence="false")(str(path)).confidence is None


@pytest.mark.parametrize("wanted", [True, "true", "left", ["left"]])
def test_only_the_largest_component_of_a_structure_is_kept(wanted, scan) -> None:
    path, _ = scan
    whole, kept = segmenter()(str(path)).classes, segmenter(largest_component=wanted)(str(path)).classes
    assert (whole[17:22, 12:17, 2:7] == 1).any() and not (kept[17:22, 12:17, 2:7] == 1).any()
    assert (kept[2:10] == whole[2:10]).all()
    assert (segmenter(largest_component=["right"])(str(path)).classes == whole).all()


def test_an_unknown_structure_is_refused_before_any_image() -> None:
    with pytest.raises(UserError, match=r"largest_component.*liver"):
        segmenter(largest_component=["liver"])


def test_errors_name_the_file(scan, tmp_path) -> None:
    path, _ = scan
    with pytest.raises(UserError, match=r"scan\.nii\.gz.*channel"):
        segmenter(in_channels=2)(str(path))
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"damaged\.nii\.gz"):
        segmenter()(str(damaged))


# ---------------------------------------------------------------- empty windows


@pytest.mark.parametrize("skip", [True, "true"])
def test_skipped_windows_do_not_reach_the_network_and_labels_stay_the_same(skip, tmp_path) -> None:
    image = np.zeros((60, 18, 14), np.float32)
    image[2:10, 3:14, 2:12] = 1
    path = str(save(tmp_path / "scan.nii.gz", image, oblique((1.5, 1.5, 1.5))))
    given, labels = [], []
    for option in (False, skip):
        counted = []

        def spy(windows: torch.Tensor, counted=counted) -> torch.Tensor:
            counted.append(len(windows))
            return brightness(windows)

        labels.append(segmenter(spy, skip_empty=option)(path).classes)
        given.append(sum(counted))
    assert given[1] < given[0] / 2
    np.testing.assert_array_equal(*labels)


def test_a_window_counts_as_empty_if_every_channel_has_a_single_value() -> None:
    windows = torch.zeros(3, 2, 4, 4, 4)
    windows[1, 1, 0, 0, 0] = 1.0
    windows[2] += torch.tensor([3.0, -7.0]).reshape(2, 1, 1, 1)
    seen = []
    logits = EmptyWindowsSkipped(lambda w: seen.append(len(w)) or w.new_ones(len(w), 3, 4, 4, 4), 3)(windows)
    assert seen == [1] and (logits[1] == 1).all()
    assert (logits[[0, 2]].argmax(1) == 0).all() and (logits[[0, 2]].softmax(1)[:, 0] > 0.999).all()


# ---------------------------------------------------------------- confidence and uncertainty

# four voxels, three classes
PROBABILITIES = torch.tensor([[0.9, 0.2, 0.1, 0.5], [0.1, 0.8, 0.6, 0.5], [0.0, 0.0, 0.3, 0.0]])
CLASSES = torch.tensor([0, 1, 1, 0])


def sums(*parts: slice) -> ClassSums:
    result = ClassSums(3)
    for part in parts:
        result.add(PROBABILITIES[:, part], CLASSES[part])
    return result


def test_confidence_is_the_soft_dice_of_prediction_and_probabilities() -> None:
    # class 0: 2 (0.9 + 0.5) / (2 + 1.7); class 1: 2 (0.8 + 0.6) / (2 + 2.0); class 2 has no voxel
    assert sums(slice(None)).confidences() == pytest.approx([2.8 / 3.7, 0.7, 0.0], abs=1e-6)


def test_confidence_of_a_case_is_the_mean_over_found_structures() -> None:
    assert sums(slice(None)).confidence() == pytest.approx(0.7, abs=1e-6)


def test_a_prediction_without_structures_has_confidence_0() -> None:
    result = ClassSums(2)
    result.add(torch.tensor([[0.99, 0.98], [0.01, 0.02]]), torch.tensor([0, 0]))
    assert result.confidence() == 0.0


def test_parts_of_a_volume_add_up() -> None:
    assert sums(slice(0, 1), slice(1, 4)).confidences() == sums(slice(None)).confidences()


def test_entropy_is_0_for_a_certain_voxel_and_1_for_equal_probabilities() -> None:
    voxels = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])
    assert normalised_entropy(voxels).tolist() == pytest.approx([0.0, 1.0, 0.5])


# ---------------------------------------------------------------- mirrored views

IMAGE = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def pointwise(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([windows, -2 * windows, windows.square()], dim=1)


def leaning(windows: torch.Tensor) -> torch.Tensor:
    """The logit of class 1 increases along D, so a mirrored view predicts the opposite."""
    ramp = torch.arange(3.0).reshape(3, 1, 1).expand(windows.shape)
    return torch.cat([torch.zeros_like(windows), ramp], dim=1)


@pytest.mark.parametrize("axes", [[], [0], [1, 2], [0, 1, 2]])
def test_mirroring_does_not_change_a_voxelwise_network(axes) -> None:
    got = MirroredNetwork(pointwise, axes)(IMAGE)
    torch.testing.assert_close(got.softmax(1), pointwise(IMAGE).softmax(1))


def test_probabilities_are_averaged() -> None:
    rising = leaning(IMAGE).softmax(1)
    got = MirroredNetwork(leaning, [0])(IMAGE).softmax(1)
    torch.testing.assert_close(got, (rising + rising.flip(2)) / 2)
    torch.testing.assert_close(got[0, 1, :, 0, 0], torch.tensor([0.6904, 0.7311, 0.6904]), atol=1e-4, rtol=0)


def test_three_axes_give_eight_views() -> None:
    seen = []
    MirroredNetwork(lambda windows: seen.append(windows) or pointwise(windows), [0, 1, 2])(IMAGE)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8


def test_a_probability_of_zero_stays_finite() -> None:
    sure = MirroredNetwork(lambda w: torch.cat([w * 0 + 1e4, w * 0 - 1e4], dim=1), [0])(IMAGE)
    assert sure.isfinite().all()
    assert sure.softmax(1)[:, 1].max() < 1e-30


@pytest.mark.parametrize("axes", [[3], [0, 0], ["x"], [-1], "012"])
def test_invalid_axes_are_refused(axes) -> None:
    with pytest.raises(UserError, match=r"mirror_axes"):
        MirroredNetwork(pointwise, axes)
