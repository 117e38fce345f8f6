# SPDX-License-Identifier: Apache-2.0
"""Names of files and folders tell case, role, part and channel."""

from __future__ import annotations

import unicodedata
from itertools import product
from pathlib import Path

import pytest

from scripts.data.naming import (
    bids_agreement,
    is_image_folder,
    is_label_folder,
    is_label_stem,
    part_of,
    place_of,
    split_channel,
    stem_of,
    without_image_word,
    without_label_word,
)
from scripts.dataset_setup.roles import Request, assign, gather
from tests.scan_folder import volume


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("a/case.1.2.nii.gz", "case.1.2"),
        ("a/Fall 7 (neu).NII.GZ", "Fall 7 (neu)"),
        ("Müller.nrrd", "Müller"),
        ("scans/series.01", "series.01"),  # a DICOM folder keeps what is behind its dots
    ],
)
def test_a_stem_is_the_name_without_the_image_ending(path: str, stem: str) -> None:
    assert stem_of(path) == stem


def test_composed_and_decomposed_accents_are_equal() -> None:
    assert stem_of(unicodedata.normalize("NFD", "Müller.nii")) == stem_of(unicodedata.normalize("NFC", "Müller.nii"))


@pytest.mark.parametrize(
    ("stem", "bare"),
    [
        ("a_seg", "a"), ("a-seg", "a"), ("a_LABEL", "a"), ("a.b_mask", "a.b"), ("a_gt", "a"), ("a b labels", "a b"),
        ("label0007", "0007"), ("segmentation-12", "12"), ("segmentation", ""), ("ground_truth", ""),
    ],
)  # fmt: skip
def test_label_words_are_removed(stem: str, bare: str) -> None:
    assert is_label_stem(stem)
    assert without_label_word(stem) == bare


@pytest.mark.parametrize("stem", ["a", "labelled_7", "segovia", "aseg", "masked-3", "patient_0001", "gtx"])
def test_words_that_only_begin_like_a_label_word_are_kept(stem: str) -> None:
    assert not is_label_stem(stem)
    assert without_label_word(stem) == stem


@pytest.mark.parametrize(
    ("stem", "bare"), [("a_image", "a"), ("img0007", "0007"), ("volume-3", "3"), ("imagine", "imagine")]
)
def test_image_words_are_removed(stem: str, bare: str) -> None:
    assert without_image_word(stem) == bare


def test_folders_named_images_or_labels() -> None:
    assert all(map(is_label_folder, ("labels", "labelsTr", "Labels_test", "masks", "segmentations", "GT")))
    assert all(map(is_label_folder, ("labelsVa", "labelsTr_old", "labels_backup", "labels2", "labels (copy)", "gt-v2")))
    assert all(map(is_label_folder, ("expert_labels", "old_labelsTr", "reader 1 masks")))
    others = ("no_labels", "without-masks", "images_and_masks", "imgs_masks", "masked", "predictions")
    assert not any(map(is_label_folder, others))
    assert all(map(is_label_folder, ("test_labels", "TrainMask")))
    assert all(map(is_image_folder, ("images", "imagesTs", "Images_train", "img", "scans", "test_images", "TestScans")))
    assert not any(is_label_folder(name) or is_image_folder(name) for name in ("labelled", "case_7", "site", "mask_7"))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("imagesTs/a.nii", "test"), ("imagesTr/a.nii", "training"), ("test/images/a.nii", "test"),
        ("labels_val/a.nii", "validation"), ("Validation/a.nii", "validation"), ("latest/a.nii", "training"),
        ("/somebody's/test/images/a.nii", "training"), ("labelsVa/a.nii", "validation"), ("valid/a.nii", "validation"),
        ("imagesTs_old/a.nii", "test"), ("imagesVa/a.nii", "validation"), ("labelsTs-2/a.nii", "test"),
        ("test_images/a.nii", "test"), ("TestMasks/a.nii", "test"), ("Testing Set/c1/img.nii", "test"),
        ("ISLES2015_Testing/1/a.nii", "training"), ("val-scans/a.nii", "validation"), ("ScansVal/a.nii", "validation"),
        ("test001/img.nii", "training"), ("sub-1/ses-test/anat/a.nii", "training"), ("test-retest/a.nii", "training"),
        ("TestProject/imagesTr/a.nii", "training"), ("Testing Set/train_7/a.nii", "test"),
        ("Training Set/test_subject_3/a.nii", "training"), ("BraTS_Training/test_subject_3/a.nii", "training"),
        ("contrast/a.nii", "training"), ("TS_001/a.nii", "training"), ("site_VA/a.nii", "training"),
        ("train_test/a.nii", "training"), ("testosterone_valve/a.nii", "training"), ("test_3.nii", "training"),
    ],
)  # fmt: skip
def test_folders_tell_training_from_test(path: str, part: str) -> None:
    assert part_of(path) == part


def test_the_place_omits_folders_that_only_name_a_role() -> None:
    assert place_of("site A/images/p1/a.nii") == ("site A", "p1")
    assert place_of("imagesTr/a.nii") == ()


def test_channels_are_nnunets_four_digits_or_what_the_user_names() -> None:
    assert split_channel("a_0001", None) == ("a", "0001")
    assert split_channel("hippocampus_001", None) is None
    assert split_channel("a_T1ce", ("t1", "t1ce")) == ("a", "t1ce")
    assert split_channel("t1", ("t1",)) == ("", "t1")
    assert split_channel("a_flair", ("t1",)) is None


@pytest.mark.parametrize(
    ("label", "image", "shared"),
    [
        ("sub-01_T1w_label-lesion_dseg", "sub-01_T1w", 1),
        ("sub-01_T1w_label-lesion_dseg", "sub-01_FLAIR", 0),
        ("sub-01_ses-2_dseg", "sub-01_ses-2_T1w", 2),
        ("sub-01_ses-2_dseg", "sub-01_ses-1_T1w", 0),
        ("sub-verse004_seg-vert_msk", "sub-verse004_ct", 1),
        ("sub-verse401_split-verse253_seg-vert_msk", "sub-verse401_split-verse253_ct", 2),
        ("sub-02_dseg", "sub-01_T1w", 0),
        ("subject_dseg", "subject_T1w", 0),
    ],
)
def test_names_in_the_form_of_bids_share_entities(label, image, shared) -> None:
    assert bids_agreement(label, image) == shared


@pytest.mark.parametrize("stem", ["sub-1_seg-vert_msk", "sub-01_T1w_label-lesion_dseg", "sub-3_space-T1w_mask"])
def test_suffixes_of_bids_mark_labels(stem) -> None:
    assert is_label_stem(stem)
    assert not is_label_stem("sub-1_T1w") and not is_label_stem("sub-mask_T1w")


def roles_of(folder: Path, **options):
    request = Request(folder, "mine", **options)
    return assign(gather(request)[0], request)


@pytest.mark.parametrize(
    ("training", "test", "image", "label"),
    [
        ("train", "test", "{}_images/1{}.nii", "{}_labels/1{}.nii"),
        ("Training", "Testing", "{} Set/1{}/img.nii", "{} Set/1{}/seg.nii"),
    ],
)
def test_folders_for_parts_keep_their_cases_apart(training, test, image, label, tmp_path) -> None:
    """One test case has no label; the same names occur in both parts."""
    for part, number in [*product((training, test), range(3)), (test, 3)]:
        volume(tmp_path / image.format(part, number))
        if number < 3:
            volume(tmp_path / label.format(part, number), classes=(1,))
    roles = roles_of(tmp_path)
    assert sorted(Path(case.images[0]).relative_to(tmp_path).as_posix() for case in roles.test) == [
        image.format(test, number) for number in range(3)
    ]
    assert all(f"/{training}" in case.images[0] and f"/{training}" in case.label for case in roles.labelled)
    assert (len(roles.labelled), roles.unlabelled) == (3, []) and "--use_test_images" in " ".join(roles.notes)
