# SPDX-License-Identifier: Apache-2.0
"""Label volumes are written on the grid that they have."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from scripts.images.monai import GridWriter, label_dtype
from tests.volume_files import oblique, stored_as, volume


def save_image(folder, **options):
    return SaveImage(
        folder, writer=GridWriter, output_dtype=np.uint8, separate_folder=False, print_log=False, **options
    )


@pytest.mark.parametrize("axcodes", ["RAS", "PIR", "ASL"])
@pytest.mark.parametrize("channel_dim", [0, float("nan")])
@pytest.mark.parametrize("shape", [(9, 7, 5), (9, 7, 1)])
def test_the_label_of_an_image_with_channels_keeps_its_three_axes(tmp_path, axcodes, channel_dim, shape):
    """MONAI's writer drops one of them (channels), or that of one slice."""
    array, matrix = stored_as((volume(shape) % 3).astype(np.uint8), oblique(), axcodes)
    meta = {"filename_or_obj": "a.nrrd", "original_channel_dim": channel_dim, "spatial_shape": np.array(array.shape)}
    save_image(tmp_path)(MetaTensor(torch.as_tensor(array)[None], affine=torch.as_tensor(matrix), meta=meta))
    written = nibabel.load(tmp_path / "a_trans.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), array)
    np.testing.assert_allclose(written.affine, matrix, atol=1e-4)
    assert written.header["qform_code"] > 0 and written.header["sform_code"] > 0


def test_resampling_is_refused():
    with pytest.raises(ValueError, match="resample=False"):
        GridWriter().set_metadata({"affine": np.eye(4)}, resample=True)


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
