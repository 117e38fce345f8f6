# SPDX-License-Identifier: Apache-2.0
"""Each setting follows from the measured properties by a rule that can be checked by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from scripts.data.labels import Tally
from scripts.dataset_setup.fingerprint import Fingerprint, Grid, Intensity, LabelValues
from scripts.dataset_setup.layouts import Description
from scripts.dataset_setup.plan import (
    Machine,
    choose_patch,
    choose_step,
    classes_of,
    default_network,
    make_plan,
    median_grid,
    modality_of,
    windows_of,
)
from scripts.errors import UserError
from scripts.training.limits import check_memory


def always(_patch) -> bool:
    return True


def values(*found: int) -> LabelValues:
    labels = LabelValues()
    labels.add(Tally(whole=Counter(found)))
    return labels


def test_spacing_is_the_median_and_sizes_are_those_after_resampling() -> None:
    grids = [
        Grid((10, 20, 30), (1.0, 1.0, 2.0), 1),
        Grid((10, 20, 30), (2.0, 1.0, 2.0), 1),
        Grid((40, 20, 30), (0.5, 3.0, 4.0), 1),
    ]
    spacing, size = median_grid(grids)
    assert spacing == [1.0, 1.0, 2.0]
    assert size == [20, 20, 30]  # 10, 20, 20 / 20, 20, 60 / 30, 30, 60


def test_values_become_classes_in_their_order_with_background_first() -> None:
    assert classes_of(values(0, 255), Description(), None, None) == ([0, 255], ["background", "structure 255"])
    assert classes_of(values(2, 1), Description(), None, None)[0] == [0, 1, 2]
    assert classes_of(values(0, 1, 255), Description(), None, 255)[0] == [0, 1]


def test_a_declared_class_counts_even_if_no_label_holds_it() -> None:
    description = Description(label_names={0: "background", 1: "liver", 3: "tumour"})
    assert classes_of(values(0, 1), description, None, None) == ([0, 1, 3], ["background", "liver", "tumour"])


@pytest.mark.parametrize(
    ("found", "names", "named"),
    [
        ((0,), None, " 0,"),
        ((-1, 0, 1), None, "--ignore_value -1"),
        ((-1024, -1024, -1024, -1023), None, "-1024"),
        ((0, 1, 2), ("background", "liver", "liver"), "--label_names"),
        ((0, 1), ("liver",), "--label_names"),
        ((0, 1), ("background", "$__import__('os')"), "--label_names"),
        ((0, 1), ("background", "tumour #1"), "--label_names"),
    ],
)
def test_labels_that_make_no_classes_are_refused(found, names, named) -> None:
    with pytest.raises(UserError, match=named):
        classes_of(values(*found), Description(), names, None)


def test_code_in_a_dataset_json_is_refused() -> None:
    with pytest.raises(UserError, match="--label_names"):
        classes_of(values(0, 1), Description(label_names={1: "$print('hello')"}), None, None)


def test_ct_is_known_by_name_or_by_air() -> None:
    air, bright = Intensity(-1000, -50.0, 200.0), Intensity(0, 5.0, 900.0)
    assert modality_of([air], Description())[0] == "CT"
    assert modality_of([bright], Description())[0] == "other"
    assert modality_of([air, bright], Description())[0] == "CT and other"
    assert modality_of([bright], Description(("CT (portal)",)))[0] == "CT"
    assert modality_of([air], Description(("MRI",)))[0] == "other"
    assert modality_of([bright, air], Description(("PET", "CT")))[0] == "CT and other"
    assert modality_of([air], Description(("PET", "CT")))[0] == "other"  # one file with another number of channels
    assert modality_of([bright], Description(("structure",)))[0] == "other"


def test_the_window_of_ct_spans_all_channels_and_is_never_empty() -> None:
    both = [Intensity(-1000, -57.26, 130.04), Intensity(-1000, -20.0, 301.0)]
    assert windows_of(both, [True, True]) == [(-57.3, 301.0)] * 2
    assert windows_of([Intensity(-1000, 3.0, 3.0)], [True]) == [(3.0, 4.0)]


def test_of_several_channels_only_ct_has_a_window_and_its_own() -> None:
    channels = [Intensity(0, 1.0, 9.0), Intensity(-1000, -57.26, 130.04), Intensity(0, 5.0, 60.0)]
    assert windows_of(channels, [False, True, False]) == [None, (-57.3, 130.0), None]
    assert windows_of(channels[:1], [False]) == [None]


@pytest.mark.parametrize(
    ("size", "patch"),
    [
        ((35, 50, 36), [32, 48, 32]),
        ((40, 39, 8), [48, 32, 16]),
        ((10, 12, 9), [16, 32, 16]),
        ((512, 512, 90), [64, 64, 64]),
        ((512, 512, 16), [128, 128, 16]),
    ],
)
def test_a_patch_is_the_volume_in_multiples_of_the_divisor_up_to_a_limit(size, patch) -> None:
    assert choose_patch(size, 16, 64**3, always) == patch


def test_a_patch_shrinks_until_it_fits_and_stays_trainable() -> None:
    assert choose_patch((128, 96, 64), 16, 2**40, lambda patch: max(patch) <= 80) == [80, 80, 64]
    assert choose_patch((128, 96, 64), 16, 2**40, lambda _: False) == [32, 32, 32]


NETWORK = {
    "in_channels": 1,
    "label_names": ["background", "a"],
    "stem_stride": 2,
    "norm": "group",
    "widths": [24, 48, 96, 128],
}


def test_less_memory_makes_smaller_patches_that_the_memory_check_of_training_passes() -> None:
    size = (120, 120, 120)
    patches = [choose_step(size, NETWORK, True, Machine("cpu", memory))[0] for memory in (2**28, 2**29, 2**40)]
    voxels = [a * b * c for a, b, c in patches]
    assert voxels[0] < voxels[1] < voxels[2] == 64**3
    network, divisor = default_network(NETWORK)
    check_memory(network, 1, patches[0], 3, divisor)


def test_a_gpu_takes_larger_patches_and_more_of_them() -> None:
    network = NETWORK | {"widths": [32, 64, 128, 256]}
    assert choose_step((200, 200, 200), network, True, Machine("gpu24", 2**45)) == ([128, 128, 128], (4, 2))
    assert choose_step((200, 200, 200), network, True, Machine.of("gpu8")) == ([96, 96, 96], (2, 1))
    assert choose_step((200, 200, 200), network, False, Machine.of("gpu24"))[1][1] == 0


def test_the_smallest_volumes_still_get_a_patch_that_the_network_takes() -> None:
    names = ["background", "a", "b"]
    settings = NETWORK | {"in_channels": 2, "label_names": names, "stem_stride": 1, "norm": "batch"}
    patch, _ = choose_step((9, 12, 10), settings, False, Machine("cpu", 2**33))
    network, divisor = default_network(settings)
    check_memory(network, 2, patch, 2, divisor)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64, 64), (1, "batch", [16, 32, 64, 128])),
        ((64, 64, 65), (2, "group", [24, 48, 96, 128])),
    ],
)
def test_network_follows_the_size_of_the_volumes(shape, expected) -> None:
    fingerprint = Fingerprint([Grid(shape, (1.0, 1.0, 1.0), 1)], values(0, 1), [Intensity(0, 5.0, 900.0)], 1, [])
    plan = make_plan(fingerprint, Description(), None, None, True, Machine("cpu", 2**40))
    assert (plan.stem_stride, plan.norm, plan.widths) == expected
    assert (plan.batch_labelled, plan.batch_unlabelled, plan.max_steps, plan.preset) == (2, 1, 2000, "cpu")
    larger = make_plan(fingerprint, Description(), None, None, True, Machine.of("gpu8"))
    assert (larger.widths, larger.max_steps, larger.norm) == ([32, 64, 128, 256], 6000, expected[1])
