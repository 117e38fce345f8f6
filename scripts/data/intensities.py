# SPDX-License-Identifier: Apache-2.0
"""Fast versions of MONAI's random intensity transforms, so that a network on a CPU does not wait for them.

They draw from the same distributions as the MONAI transforms that they name. MONAI computes noise and fields in
float64, filters with dense convolutions, and uses slow kernels for powers and standard deviations.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.networks.layers.convutils import gaussian_1d
from monai.transforms import MapTransform, RandomizableTransform

TINY = 1e-7
"""Keeps logarithms and quotients finite where an image is constant."""


class _RandIntensityd(RandomizableTransform, MapTransform):
    """Base class that changes images with a given probability.

    Args:
        keys: images `(C, D, H, W)`; the result holds plain float32 tensors.
        prob: probability of a change.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with changed images, or with the original ones."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(data):
                result[key] = self.change(torch.as_tensor(data[key]).as_subclass(torch.Tensor).float())
        return result

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Draw the random parameters and return the new image."""


class RandNoised(_RandIntensityd):
    """Add Gaussian noise, as MONAI's `RandGaussianNoised` does.

    Args:
        keys: images.
        prob: probability.
        std: maximum standard deviation; the standard deviation is drawn uniformly from [0, std).
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, std: float = 0.1) -> None:
        super().__init__(keys, prob)
        self.std = std

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        std = self.R.uniform(0, self.std)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        return torch.randn(image.shape, generator=generator, dtype=image.dtype).mul_(std).add_(image)


class RandBlurd(_RandIntensityd):
    """Blur with a Gaussian, as MONAI's `RandGaussianSmoothd` does, but pad with edge values instead of zeros.

    Args:
        keys: images.
        prob: probability.
        sigma: minimum and maximum standard deviation in voxels; drawn for each axis.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, sigma: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(keys, prob)
        self.sigma = sigma

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        return along_axes(image, [blur_matrix(side, self.R.uniform(*self.sigma)) for side in image.shape[1:]])


class RandContrastd(_RandIntensityd):
    """Gamma correction that keeps mean and standard deviation, as MONAI's `RandAdjustContrastd(retain_stats=True)`.

    Args:
        keys: images.
        prob: probability.
        gamma: minimum and maximum exponent; it is applied to intensities scaled to [0, 1].
        invert_prob: probability that the correction is applied to the inverted image, as with MONAI's `invert_image`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        gamma: Sequence[float] = (0.7, 1.5),
        invert_prob: float = 0.0,
    ) -> None:
        super().__init__(keys, prob)
        self.gamma, self.invert_prob = gamma, invert_prob

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        inverted = self.R.random_sample() < self.invert_prob
        image = -image if inverted else image
        low, high = image.aminmax()
        powers = (image - low).div_(high - low + TINY).clamp_(min=TINY)
        powers.log_().mul_(self.R.uniform(*self.gamma)).exp_()  # much faster than `**`
        spread = torch.linalg.vector_norm(image - image.mean())
        powers -= powers.mean()
        powers.mul_(spread / (torch.linalg.vector_norm(powers) + TINY)).add_(image.mean())
        return powers.neg_() if inverted else powers


class RandSmoothFieldd(_RandIntensityd):
    """Multiply by the exponential of a random polynomial of degree 3, as `RandBiasFieldd`, relative to the minimum.

    The coils of an MR scanner multiply a signal that is 0 in air. Normalised images are negative in air. Multiplying
    their values by a field would change the contrast where values are far from 0, and would not change the brightness
    where they are close to 0. Here the minimum of the image is subtracted first and added afterwards.

    Args:
        keys: images.
        prob: probability.
        coefficients: minimum and maximum coefficient of a product of Legendre polynomials, each on [-1, 1].
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, coefficients: Sequence[float] = (-0.1, 0.1)) -> None:
        super().__init__(keys, prob)
        self.coefficients = coefficients

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        orders = np.indices((4, 4, 4)).sum(0)
        drawn = np.where(orders <= 3, self.R.uniform(*self.coefficients, size=orders.shape), 0)
        field = along_axes(torch.from_numpy(drawn[None]).float(), [_legendre(n) for n in image.shape[1:]]).exp_()
        low = image.min()
        return field.mul(image - low).add_(low)


def along_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply each axis of a volume by the matrix for that axis.

    Args:
        volume: `(C, A, B, E)`.
        matrices: `(D, A)`, `(H, B)` and `(W, E)`.

    Returns:
        `(C, D, H, W)`.
    """
    first, second, third = matrices
    rows = second @ (volume @ third.T)
    return (first @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def blur_matrix(side: int, sigma: float) -> torch.Tensor:
    """Return the convolution with a Gaussian as a matrix `(side, side)`, with edge values as padding.

    Args:
        side: number of voxels along the axis.
        sigma: standard deviation in voxels.
    """
    kernel = gaussian_1d(torch.tensor(sigma), normalize=True).float()
    reach = len(kernel) // 2
    source = (torch.arange(side)[:, None] + torch.arange(-reach, reach + 1)).clamp_(0, side - 1)
    return torch.zeros(side, side, dtype=torch.float32).scatter_add_(1, source, kernel.expand(side, -1))


@lru_cache
def _legendre(side: int) -> torch.Tensor:
    """Legendre polynomials of degree 0 to 3 on [-1, 1], `(side, 4)`."""
    return torch.from_numpy(np.polynomial.legendre.legvander(np.linspace(-1, 1, side), 3)).float()
