# SPDX-License-Identifier: Apache-2.0
"""The type of the voxels of a label volume."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.images.monai import label_dtype


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1], np.uint8),
        ([0, 255], np.uint8),
        ([0, 256], np.int16),
        ([-1, 3], np.int16),
        ([0, 40000], np.int32),
    ],
)
def test_the_smallest_type_that_holds_every_value_is_taken(values, dtype) -> None:
    assert label_dtype(values) == dtype
