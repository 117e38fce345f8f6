# SPDX-License-Identifier: Apache-2.0
"""The predicted size of a resampled volume equals that of MONAI's result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from scripts.images.header import resampled_shape


@pytest.mark.parametrize(
    ("shape", "spacing", "target"),
    [
        ((18, 17, 16), (1.5, 2.0, 2.5), (1.5, 2.0, 2.5)),
        ((18, 17, 16), (1.5, 2.0, 2.5), (2.0, 1.0, 1.1)),
        ((31, 9, 5), (0.7, 0.9, 5.0), (1.0, 1.0, 1.0)),
        ((7, 12, 3), (1.0, 1.0, 1.0), (3.1, 2.7, 0.9)),
    ],
)
def test_the_shape_is_that_of_monais_resampling(shape, spacing, target) -> None:
    volume = MetaTensor(torch.zeros(1, *shape), affine=torch.tensor(np.diag([*spacing, 1.0])))
    assert resampled_shape(shape, spacing, target) == tuple(Spacing(pixdim=target)(volume).shape[1:])
