# SPDX-License-Identifier: Apache-2.0
"""The record of a preprocessing: equal for what does the same to an image, different for what does not."""

from __future__ import annotations

import json

import pytest
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd, Orientationd, ScaleIntensityRanged, Spacingd

from scripts.data.preprocessing_record import describe_preprocessing, differences


def chain(keys="image", mode="bilinear", pixdim=(2.0, 2.0, 2.5), intensity=None) -> Compose:
    return Compose(
        [
            LoadImaged(keys=keys),
            Orientationd(keys=keys, axcodes="RAS", labels=None),
            Spacingd(keys=keys, pixdim=pixdim, mode=mode),
            intensity or NormalizeIntensityd(keys="image", channel_wise=True),
        ]
    )


def test_settings_stand_in_the_record_under_their_names() -> None:
    record = describe_preprocessing(chain())
    assert [entry["transform"] for entry in record] == ["Orientationd", "Spacingd", "NormalizeIntensityd"]
    assert record[1]["spacing_transform.pixdim"] == [2.0, 2.0, 2.5]
    assert record[1]["mode"] == "bilinear"
    assert record[2]["normalizer.channel_wise"] is True


def test_a_label_beside_the_image_changes_nothing_for_the_image() -> None:
    alone = describe_preprocessing(chain())
    beside = describe_preprocessing(chain(["image", "label"], ["bilinear", "nearest"]))
    behind = describe_preprocessing(chain(["label", "image"], ["nearest", "bilinear"]))
    assert alone == beside == behind


def test_the_label_is_told_apart_from_the_image() -> None:
    label = describe_preprocessing(chain(["image", "label"], ["bilinear", "nearest"]), key="label")
    assert [entry["transform"] for entry in label] == ["Orientationd", "Spacingd"]
    assert label[1]["mode"] == "nearest"


@pytest.mark.parametrize("outer", [lambda c: c, lambda c: Compose([c]), lambda c: Compose([Compose([c])])])
def test_nesting_of_compose_is_no_difference(outer) -> None:
    assert differences(describe_preprocessing(chain()), describe_preprocessing(outer(chain()))) == []


def test_another_spacing_is_named_with_both_values() -> None:
    found = differences(describe_preprocessing(chain()), describe_preprocessing(chain(pixdim=(1.0, 2.0, 2.5))))
    assert found == ["Spacingd spacing_transform.pixdim [2.0, 2.0, 2.5] then, [1.0, 2.0, 2.5] now"]


def test_another_intensity_window_is_named() -> None:
    def window(low: int) -> ScaleIntensityRanged:
        return ScaleIntensityRanged(keys="image", a_min=low, a_max=160, b_min=-1.0, b_max=1.0, clip=True)

    records = [describe_preprocessing(chain(intensity=window(low))) for low in (-60, -100)]
    assert differences(*records) == ["ScaleIntensityRanged scaler.a_min -60 then, -100 now"]


def test_another_kind_of_intensity_is_a_difference() -> None:
    other = chain(intensity=ScaleIntensityRanged(keys="image", a_min=0, a_max=1, b_min=0, b_max=1))
    (found,) = differences(describe_preprocessing(chain()), describe_preprocessing(other))
    assert "NormalizeIntensityd then" in found and "ScaleIntensityRanged now" in found


def test_the_record_is_plain_and_survives_json() -> None:
    record = describe_preprocessing(chain())
    assert json.loads(json.dumps(record)) == record
