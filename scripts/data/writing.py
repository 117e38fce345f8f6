# SPDX-License-Identifier: Apache-2.0
"""The writer that MONAI's `SaveImaged` takes: a label volume goes into a NIfTI file on the grid that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter
from monai.utils import MetaKeys, convert_to_numpy


def label_dtype(values: Sequence[int]) -> np.dtype:
    """The smallest type of a NIfTI file that holds these label values: uint8 for 0 to 255, else int16 or int32."""
    kinds = (np.uint8, np.int16, np.int32)
    limits = [(np.iinfo(kind).min, np.iinfo(kind).max) for kind in kinds]
    fitting = [k for k, (low, high) in zip(kinds, limits, strict=True) if low <= min(values) and max(values) <= high]
    return np.dtype(fitting[0])


class GridWriter(NibabelWriter):
    """`NibabelWriter` without its resampling, and with one slice still a volume.

    MONAI's resampling runs even where nothing is to be resampled. It takes the number of axes from the meta data, and
    the label volume of an image with channels for a picture: permuted axes then end in an error.
    """

    def set_data_array(
        self,
        data_array: NdarrayOrTensor,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        **kwargs: Any,
    ) -> None:
        """Take the voxels.

        Args:
            data_array: `(channels, X, Y, Z)`.
            channel_dim: axis of channels.
            squeeze_end_dims: whether the axis of one channel is dropped. MONAI also drops that of one slice.
            kwargs: as MONAI's.
        """
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping[str, Any], resample: bool = False, **options: Any) -> None:
        """Take the affine.

        Args:
            meta_dict: with `affine`, voxel index to mm, RAS.
            resample: must be false; whoever wants another grid resamples before.
            options: MONAI's, for resampling.

        Raises:
            ValueError: where resampling is asked for.
        """
        if resample:
            raise ValueError("GridWriter writes the grid that it is given: SaveImaged must have resample=False.")
        self.affine = np.asarray(convert_to_numpy(meta_dict[MetaKeys.AFFINE]), dtype=float)
