# SPDX-License-Identifier: Apache-2.0
"""Label volumes become classes; undeclared values are refused by name; ignored voxels reach no metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose

from scripts.data.spec import DatasetSpec
from scripts.data.transforms import IgnoredToBackgroundd, KeepLargestd, LabelsToClassesd, StoredLabels, StoredLabelsd
from scripts.errors import UserError, root_user_error


def declared(num_classes: int, **more) -> DatasetSpec:
    return DatasetSpec("", label_names=list("abcdefgh"[:num_classes]), **more)


def label(*values, path="/data/labels/la_003.nrrd"):
    return MetaTensor(torch.tensor(values).reshape(1, -1, 1, 1), meta={"filename_or_obj": path})


def test_classes_keep_the_grid_of_the_file_and_the_input_is_not_changed():
    data = {"label": label(0, 255, 7, 0), "case": "la_003"}
    data["label"].affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    result = LabelsToClassesd("label", declared(2, label_values=[0, 255], ignore_value=7))(data)
    assert result["case"] == "la_003"
    assert result["label"].flatten().tolist() == [0, 1, -1, 0]
    assert result["label"].pixdim.tolist() == [1.0, 2.0, 3.0]
    assert result["label"].meta["filename_or_obj"] == "/data/labels/la_003.nrrd"
    assert data["label"].flatten().tolist() == [0, 255, 7, 0]


@pytest.mark.parametrize("value", [3, 255, -1])
def test_an_undeclared_value_is_refused_with_file_value_and_declaration(value):
    with pytest.raises(UserError) as caught:
        LabelsToClassesd("label", declared(3))({"label": label(0, value, 1)})
    for named in ("/data/labels/la_003.nrrd", f" {value},", "[0, 1, 2]"):
        assert named in str(caught.value)


def test_a_value_between_two_classes_is_refused():
    # Linear interpolation of a label volume makes such values; cast to int they would become a class.
    with pytest.raises(UserError, match=r" 0\.5, .*\[0, 1\].* 9"):
        LabelsToClassesd("label", declared(2, ignore_value=9))({"label": label(0.0, 0.5, 1.0)})


def test_a_plain_tensor_is_named_by_its_key():
    with pytest.raises(UserError, match=r"^label .* 7,"):
        LabelsToClassesd("label", declared(2))({"label": torch.tensor([0, 7], dtype=torch.uint8)})


def test_a_case_without_the_key_passes_only_if_allowed():
    assert LabelsToClassesd("label", declared(1), allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        LabelsToClassesd("label", declared(1))({"image": 1})


def test_a_file_with_only_ignored_voxels_is_refused():
    with pytest.raises(UserError, match=r"/data/labels/la_003\.nrrd .*ignore_value 255"):
        LabelsToClassesd("label", declared(2, ignore_value=255))({"label": label(255, 255)})


def test_the_error_is_found_in_a_cache_that_is_filled_by_threads():
    data = [{"label": label(0, 1, path="a")}, {"label": label(0, 4, path="b")}]
    with pytest.raises(RuntimeError) as caught:
        CacheDataset(data, Compose([LabelsToClassesd("label", declared(2))]), progress=False, num_workers=2)
    assert str(root_user_error(caught.value)).startswith("b ")


def test_ignored_voxels_become_background_on_both_sides():
    data = {"pred": label(1, 1, 2, 0), "label": label(1, -1, -1, 2)}
    result = IgnoredToBackgroundd(["pred", "label"])(data)
    assert result["pred"].flatten().tolist() == [1, 0, 0, 0]
    assert result["label"].flatten().tolist() == [1, 0, 0, 2]
    assert data["pred"].flatten().tolist() == [1, 1, 2, 0], "the input was changed"


def test_without_ignored_voxels_nothing_is_copied():
    data = {"pred": np.array([1, 1]), "label": label(1, 0)}
    result = IgnoredToBackgroundd(["pred", "label"])(data)
    assert result["pred"] is data["pred"] and result["label"] is data["label"]


def test_only_the_named_structures_lose_their_smaller_parts():
    classes = torch.tensor([[[[1, 1, 0, 1, 0, 2, 0, 2, 2]]]])
    names = ["background", "organ", "vessel"]
    reduced = KeepLargestd("pred", ["organ"], names)({"pred": classes})["pred"]
    assert reduced.flatten().tolist() == [1, 1, 0, 0, 0, 2, 0, 2, 2] and reduced.dtype == classes.dtype
    assert KeepLargestd("pred", "true", names)({"pred": classes})["pred"].sum() == 6
    assert KeepLargestd("pred", False, names)({"pred": classes})["pred"] is classes
    with pytest.raises(UserError, match=r"largest_component.*liver"):
        KeepLargestd("pred", "liver", names)


def test_stored_labels_go_to_unlabelled_cases(tmp_path):
    stored = StoredLabels(tmp_path)
    for stored.round in (1, 2):
        stored.folder.mkdir()
        np.savez(stored.folder / "a.npz", labels=np.full((3, 4, 12), stored.round, np.uint8))
    add = StoredLabelsd("stored", stored)
    assert (add({"case": "a", "image": 0})["stored"] == 2).all()
    stored.round = 1
    assert (add({"case": "a", "image": 0})["stored"] == 1).all()
    assert add({"case": "a", "image": 0})["stored"].shape == (1, 3, 4, 12)
    assert "stored" not in add({"case": "a", "image": 0, "label": 1})
    assert "stored" not in StoredLabelsd("stored", None)({"case": "a", "image": 0})
