# SPDX-License-Identifier: Apache-2.0
"""Names of the files that inference writes."""

from __future__ import annotations

import pytest

from scripts.inference.outputs import OutputNames


def test_an_output_goes_where_its_input_s_name_says(tmp_path):
    files = ["/d/c1/imaging.nii.gz", "/d/c2/imaging.nii.gz"]
    names = OutputNames(files, tmp_path / "out/deep")
    assert names.filename(subject=files[1], idx=None) == str(tmp_path / "out/deep/c2_imaging_seg.nii.gz")
    assert (tmp_path / "out/deep").is_dir()
    with pytest.raises(KeyError):
        names.filename(subject="/d/c3/imaging.nii.gz")
