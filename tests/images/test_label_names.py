# SPDX-License-Identifier: Apache-2.0
"""Label files say what their values mean, in the way of 3D Slicer (NRRD) and of TotalSegmentator (NIfTI)."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import itk
import nibabel
import numpy as np
import pytest

from scripts.data.checks.labels import names_declared
from scripts.images.header import case_name
from scripts.images.label_names import colour_of
from scripts.images.read import read_header, read_volume
from scripts.images.write import write_volume
from tests.volume_files import LPS_TO_RAS, oblique

NAMES = {3: "liver & bile", 40: "Milz größer"}
SHAPE = (6, 5, 4)


@pytest.fixture
def label() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 1:4, 2] = 3
    array[4, 2, 1:] = 40
    return array


def itk_affine(image) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = itk.array_from_matrix(image.GetDirection()) * list(image.GetSpacing())
    lps[:3, 3] = list(image.GetOrigin())
    return LPS_TO_RAS @ lps


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd", ".nii.gz"])
def test_names_and_grid_of_a_label_file_are_read_back(ending, label, tmp_path) -> None:
    path = tmp_path / f"a{ending}"
    write_volume(path, label, oblique(), names=NAMES)
    header, voxels = read_volume(path)
    assert header.segments == NAMES
    np.testing.assert_array_equal(voxels[0], label)
    image = itk.imread(str(path))
    np.testing.assert_array_equal(itk.array_from_image(image).T, label)
    corners = np.array([[x, y, z, 1] for x in (0, 5) for y in (0, 4) for z in (0, 3)]).T
    assert np.abs((itk_affine(image) - oblique()) @ corners).max() < 0.01


def test_the_fields_are_those_by_which_3d_slicer_shows_segments(label, tmp_path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_volume(path, label, oblique(), names=NAMES)
    fields = dict(itk.imread(str(path)))
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert fields["Segmentation_ContainedRepresentationNames"].rstrip("|") == "Binary labelmap"
    assert [fields[f"Segment{n}_LabelValue"] for n in (0, 1)] == ["3", "40"]
    assert (fields["Segment1_Name"], fields["Segment1_Layer"], fields["Segment1_Extent"]) == (
        "Milz größer", "0", "0 5 0 4 0 3",
    )  # fmt: skip
    assert fields["Segment0_ID"] != fields["Segment1_ID"] and "Segment2_ID" not in fields
    for number in (0, 1):
        shown = [float(part) for part in fields[f"Segment{number}_Color"].split()]
        np.testing.assert_allclose(shown, np.array(colour_of(number + 1)) / 255, atol=1e-6)


def test_the_nifti_extension_is_a_label_table(label, tmp_path) -> None:
    write_volume(tmp_path / "a.nii.gz", label, oblique(), names=NAMES)
    (extension,) = nibabel.load(tmp_path / "a.nii.gz").header.extensions
    assert extension.get_code() == 0
    table = ElementTree.fromstring(extension.content.rstrip(b"\0")).find("VolumeInformation/LabelTable")
    assert {label.get("Key"): label.text for label in table} == {"3": "liver & bile", "40": "Milz größer"}
    red = [float(label.get("Red")) for label in table]
    assert red == pytest.approx([colour_of(1)[0] / 255, colour_of(2)[0] / 255], abs=1e-6)


TABLE = """<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <VolumeInformation Index="0">   <LabelTable>
<Label Key="0" Red="0" Green="0" Blue="0" Alpha="0"><![CDATA[???]]></Label>
<Label Key="1" Red="1.0" Green="0.0" Blue="0.0" Alpha="1"><![CDATA[spleen]]></Label>
<Label Key="2" Red="0.0" Green="1.0" Blue="0.0" Alpha="1"><![CDATA[kidney_right]]></Label>
  </LabelTable> </VolumeInformation></CaretExtension>
              """


def with_extension(path: Path, content: str) -> Path:
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), oblique())
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, content.encode()))
    nibabel.save(image, path)
    return path


def test_a_table_with_cdata_is_read_without_its_background(tmp_path) -> None:
    assert read_header(with_extension(tmp_path / "a.nii.gz", TABLE)).segments == {1: "spleen", 2: "kidney_right"}


@pytest.mark.parametrize("content", [TABLE[:300], TABLE.replace('Key="1"', 'Key="one"'), "<x/>", ""])
def test_an_extension_that_is_no_such_table_is_ignored(content, tmp_path) -> None:
    header, voxels = read_volume(with_extension(tmp_path / "a.nii", content))
    assert header.segments == {} and voxels.all()


def test_a_label_of_another_program_with_swapped_values_is_found(tmp_path) -> None:
    header = read_header(with_extension(tmp_path / "a.nii.gz", TABLE))
    assert names_declared(header, {1: "Spleen", 2: "kidney right"}) == []
    findings = names_declared(header, {2: "spleen", 1: "kidney right"})
    assert len(findings) == 2 and findings[0].file == header.path


def test_the_case_of_a_segmentation_of_3d_slicer_is_its_name_before_both_endings() -> None:
    assert [case_name(name) for name in ("a.seg.nrrd", "b.c.SEG.NRRD", "a.nrrd", "a.seg.nii")] == [
        "a", "b.c", "a", "a.seg",
    ]  # fmt: skip
