# SPDX-License-Identifier: Apache-2.0
"""Label values that the dataset does not declare are refused by name."""

from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose

from scripts.data.transforms import CheckLabelsd
from scripts.errors import BundleError
from scripts.workflows.start import find_mistake


def label(*values, path="/data/labels/la_003.nrrd"):
    return MetaTensor(torch.tensor(values).reshape(1, -1, 1, 1), meta={"filename_or_obj": path})


def test_declared_values_pass_unchanged():
    data = {"label": label(0, 2, 2, 0), "case": "la_003"}
    result = CheckLabelsd("label", [0, 1, 2])(data)
    assert result["label"] is data["label"]
    assert result == {"label": data["label"], "case": "la_003"}


@pytest.mark.parametrize("value", [3, 255, -1])
def test_an_undeclared_value_is_refused_with_file_value_and_declaration(value):
    with pytest.raises(BundleError) as caught:
        CheckLabelsd("label", [2, 0, 1])({"label": label(0, value, 1)})
    assert "/data/labels/la_003.nrrd" in str(caught.value)
    assert f"label value {value}," in str(caught.value)
    assert "[0, 1, 2]" in str(caught.value)


def test_a_value_between_two_classes_is_refused():
    # Linear interpolation of a label volume makes such values; cast to int they would become a class.
    with pytest.raises(BundleError, match=r"label value 0\.5,"):
        CheckLabelsd("label", [0, 1])({"label": label(0.0, 0.5, 1.0)})


def test_a_plain_tensor_is_named_by_its_key():
    with pytest.raises(BundleError, match=r"^label holds the label value 7,"):
        CheckLabelsd("label", [0, 1])({"label": torch.tensor([0, 7], dtype=torch.uint8)})


def test_a_case_without_the_key_passes_only_if_allowed():
    assert CheckLabelsd("label", [0], allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        CheckLabelsd("label", [0])({"image": 1})


def test_the_mistake_is_found_behind_a_cache_that_is_filled_by_threads():
    data = [{"label": label(0, 1, path="a")}, {"label": label(0, 4, path="b")}]
    with pytest.raises(RuntimeError) as caught:
        CacheDataset(data, Compose([CheckLabelsd("label", [0, 1])]), progress=False, num_workers=2)
    assert str(find_mistake(caught.value)).startswith("b holds the label value 4,")
