# SPDX-License-Identifier: Apache-2.0
"""Changes of intensity are those of MONAI's namesakes."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAdjustContrastd, RandBiasFieldd, RandGaussianSmoothd
from scipy import ndimage

from scripts.data.intensities import RandBlurd, RandContrastd, RandNoised, RandSmoothFieldd, along_axes, blur_matrix

SHAPE = (2, 14, 12, 10)
TRANSFORMS = [
    RandNoised("image", 1, 0.5),
    RandBlurd("image", 1),
    RandContrastd("image", 1, (1.5, 1.6)),
    RandSmoothFieldd("image", 1, (0.1, 0.2)),
]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def applied(transform, image, seed=0):
    return transform.set_random_state(seed)({"image": image})["image"]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_seed_determines_the_change_and_the_input_stays(transform, image):
    before = image.clone()
    first, second, other = (applied(transform, MetaTensor(image), seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(image, before) and not torch.equal(first, image)
    assert type(first) is torch.Tensor and first.shape == SHAPE and first.dtype == torch.float32


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_the_default_type_of_torch_changes_nothing(transform, image):
    before = applied(transform, image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(applied(transform, image), before)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [RandNoised, RandBlurd, RandContrastd, RandSmoothFieldd])
def test_the_probability_holds(kind, image):
    transform = kind("image", 0.25)
    changed = sum(applied(transform, image, seed) is not image for seed in range(400))
    assert 70 < changed < 130


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_constant_image_stays_finite(transform):
    assert applied(transform, torch.full(SHAPE, 3.0)).isfinite().all()


def test_contrast_is_that_of_monai(image):
    ours = applied(RandContrastd("image", 1, (1.3, 1.3)), image)
    theirs = RandAdjustContrastd("image", prob=1, gamma=(1.3, 1.3), retain_stats=True)({"image": image})["image"]
    assert torch.allclose(ours, theirs.as_tensor(), atol=1e-4)


def test_contrast_of_the_inverted_image_is_that_of_monai(image):
    ours = applied(RandContrastd("image", 1, (1.3, 1.3), invert_prob=1), image)
    theirs = RandAdjustContrastd("image", prob=1, gamma=(1.3, 1.3), retain_stats=True, invert_image=True)
    assert torch.allclose(ours, theirs({"image": image})["image"].as_tensor(), atol=1e-4)


def test_the_field_is_that_of_monai_on_an_image_that_is_0_in_air(image):
    image = image - image.min()
    ours = applied(RandSmoothFieldd("image", 1, (0.1, 0.1)), image)
    theirs = RandBiasFieldd("image", prob=1, coeff_range=(0.1, 0.1))({"image": image})["image"]
    assert torch.allclose(ours, theirs.as_tensor(), atol=1e-4)


def test_the_field_does_not_depend_on_the_normalisation(image):
    field = RandSmoothFieldd("image", 1)
    assert torch.allclose(applied(field, image - 5), applied(field, image) - 5, atol=1e-5)


def test_the_blur_is_that_of_monai_away_from_the_edge(image):
    ours = applied(RandBlurd("image", 1, (0.8, 0.8)), image)
    theirs = RandGaussianSmoothd("image", (0.8, 0.8), (0.8, 0.8), (0.8, 0.8), prob=1)({"image": image})["image"]
    inner = (slice(None), *[slice(3, -3)] * 3)
    assert torch.allclose(ours[inner], theirs.as_tensor()[inner], atol=1e-3)


def test_the_blur_repeats_the_edge(image):
    line = image[0, 0, 0]
    kernel = blur_matrix(9, 0.9)[4]  # the middle row: the whole kernel
    expected = ndimage.convolve1d(line.numpy(), kernel.numpy(), mode="nearest")
    assert torch.allclose(blur_matrix(10, 0.9) @ line, torch.from_numpy(expected), atol=1e-5)


def test_noise_has_the_strength_that_is_drawn(image):
    stds = [(applied(RandNoised("image", 1, 0.4), image, seed) - image).std().item() for seed in range(60)]
    assert 0 < min(stds) < 0.05 and 0.35 < max(stds) < 0.42


def test_each_axis_is_multiplied_by_its_matrix(image):
    matrices = [torch.randn(n + 1, n) for n in SHAPE[1:]]
    expected = torch.einsum("xa,yb,zc,kabc->kxyz", *matrices, image)
    assert torch.allclose(along_axes(image, matrices), expected, atol=1e-3)
