# SPDX-License-Identifier: Apache-2.0
"""What a folder says about its dataset: the two dialects of dataset.json, and which files belong together."""

from __future__ import annotations

import pytest

from scripts.data.naming import split_roles
from scripts.dataset_setup.layouts import Description, FoundCase, describe, pair, read_mapping
from scripts.errors import UserError


def cases_of(*paths: str, labels: str | None = None, channels: tuple[str, ...] | None = None) -> list[FoundCase]:
    return pair(*split_roles(paths, labels), channels)


def found(*paths: str, **options) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {case.name: (case.images, case.label) for case in cases_of(*paths, **options)}


def refusal(*paths: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        cases_of(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ layouts


def test_images_and_labels_side_by_side_pair_by_suffix() -> None:
    assert found("a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "c-label.nrrd", "c.nrrd") == {
        "a": (("a.nii.gz",), "a_seg.nii.gz"),
        "b": (("b.nii.gz",), None),
        "c": (("c.nrrd",), "c-label.nrrd"),
    }


def test_subfolders_pair_by_the_same_stem_whatever_the_format() -> None:
    assert found("images/a.nrrd", "images/b.nii", "labels/a.nii.gz") == {
        "a": (("images/a.nrrd",), "labels/a.nii.gz"),
        "b": (("images/b.nii",), None),
    }


def test_an_image_in_the_folder_images_stays_one_whatever_its_name() -> None:
    assert found("images/brain_mask.nii", "labels/brain_mask.nii") == {
        "brain_mask": (("images/brain_mask.nii",), "labels/brain_mask.nii")
    }


def test_decathlon_folders_keep_training_and_test_apart() -> None:
    cases = cases_of("imagesTr/h_001.nii.gz", "labelsTr/h_001.nii.gz", "imagesTs/h_002.nii.gz")
    assert [(case.name, case.label, case.part) for case in cases] == [
        ("h_001", "labelsTr/h_001.nii.gz", "training"),
        ("h_002", None, "test"),
    ]


def test_the_same_name_in_training_and_test_pairs_within_each() -> None:
    paths = [f"{kind}{part}/a.nii" for kind in ("images", "labels") for part in ("Tr", "Ts")]
    assert {(case.images[0], case.label, case.part) for case in cases_of(*paths)} == {
        ("imagesTr/a.nii", "labelsTr/a.nii", "training"),
        ("imagesTs/a.nii", "labelsTs/a.nii", "test"),
    }


def test_nnunet_channels_of_a_case_stay_together_in_order() -> None:
    paths = [f"imagesTr/p_{n}_000{c}.nii.gz" for n in (1, 2) for c in (1, 0)]
    assert found(*paths, "labelsTr/p_1.nii.gz") == {
        "p_1": (("imagesTr/p_1_0000.nii.gz", "imagesTr/p_1_0001.nii.gz"), "labelsTr/p_1.nii.gz"),
        "p_2": (("imagesTr/p_2_0000.nii.gz", "imagesTr/p_2_0001.nii.gz"), None),
    }


def test_four_digits_that_number_cases_are_no_channels() -> None:
    paths = ["images/p_0001.nii", "images/p_0002.nii", "labels/p_0001.nii"]
    assert found(*paths) == {
        "p_0001": (("images/p_0001.nii",), "labels/p_0001.nii"),
        "p_0002": (("images/p_0002.nii",), None),
    }


def test_a_folder_for_each_case_pairs_what_lies_in_it() -> None:
    assert found("c1/imaging.nii.gz", "c1/segmentation.nii.gz", "c2/imaging.nii.gz") == {
        "c1": (("c1/imaging.nii.gz",), "c1/segmentation.nii.gz"),
        "c2": (("c2/imaging.nii.gz",), None),
    }


def test_several_images_in_a_cases_folder_are_its_channels() -> None:
    paths = [f"B_{n}/B_{n}_{kind}.nii" for n in (1, 2) for kind in ("t1ce", "t1", "flair")]
    assert found(*paths, "B_1/B_1_seg.nii")["B_1"] == (
        ("B_1/B_1_flair.nii", "B_1/B_1_t1.nii", "B_1/B_1_t1ce.nii"),
        "B_1/B_1_seg.nii",
    )


def test_channels_can_be_chosen_and_ordered() -> None:
    paths = [f"B_{n}/B_{n}_{kind}.nii" for n in (1, 2) for kind in ("t1ce", "t1", "flair")]
    assert found(*paths, "B_1/B_1_seg.nii", channels=("t1", "flair"))["B_1"][0] == (
        "B_1/B_1_t1.nii",
        "B_1/B_1_flair.nii",
    )
    flat = ("a_t1.nii", "a_t2.nii", "b_t1.nii", "b_t2.nii", "labels/a.nii")
    assert found(*flat, channels=("t2", "t1"))["a"] == (("a_t2.nii", "a_t1.nii"), "labels/a.nii")


def test_dicom_folders_are_images_beside_any_label() -> None:
    assert found("images/p.1", "images/p.2", "labels/p.1.nii.gz")["p.1"] == (("images/p.1",), "labels/p.1.nii.gz")
    assert found("p1/study/CT", "p1/segmentation.nrrd", "p2/study/CT") == {
        "p1": (("p1/study/CT",), "p1/segmentation.nrrd"),
        "p2": (("p2/study/CT",), None),
    }


def test_a_label_may_lie_among_the_slices_of_its_dicom_folder() -> None:
    assert found("p1", "p1/segmentation.nii.gz", "p2") == {
        "p1": (("p1",), "p1/segmentation.nii.gz"),
        "p2": (("p2",), None),
    }


def test_folders_for_labelled_and_unlabelled_pair_within_the_labelled_one() -> None:
    assert found("labelled/a.nii", "labelled/a_gt.nii", "labelled/b.nii", "labelled/b_gt.nii", "unlabelled/c.nii") == {
        "a": (("labelled/a.nii",), "labelled/a_gt.nii"),
        "b": (("labelled/b.nii",), "labelled/b_gt.nii"),
        "c": (("unlabelled/c.nii",), None),
    }


def test_images_and_labels_of_two_sites_with_the_same_names_do_not_mix() -> None:
    paths = [f"{site}/{kind}/1.nii" for site in ("x", "y") for kind in ("images", "labels")]
    assert found(*paths) == {
        "x": (("x/images/1.nii",), "x/labels/1.nii"),
        "y": (("y/images/1.nii",), "y/labels/1.nii"),
    }


def test_prefixes_that_name_the_role_pair_by_the_number_behind_them() -> None:
    assert found("volume-10.nii", "segmentation-10.nii", "volume-1.nii", "segmentation-1.nii") == {
        "volume-1": (("volume-1.nii",), "segmentation-1.nii"),
        "volume-10": (("volume-10.nii",), "segmentation-10.nii"),
    }
    assert found("img/img0007.nii", "label/label0007.nii")["img0007"][1] == "label/label0007.nii"


def test_a_named_folder_of_labels_overrules_words() -> None:
    assert found("a_seg.nii", "experts/a_seg.nii", labels="experts") == {"a_seg": (("a_seg.nii",), "experts/a_seg.nii")}


@pytest.mark.parametrize("name", ["a.b.1", "Fall 7", "Ärztin é", "x_seg_1"])
def test_dots_blanks_and_letters_of_any_kind_pair_right(name: str) -> None:
    assert found(f"images/{name}.NII.GZ", f"labels/{name}.nii.gz", f"images/{name}2.nii") == {
        name: ((f"images/{name}.NII.GZ",), f"labels/{name}.nii.gz"),
        f"{name}2": ((f"images/{name}2.nii",), None),
    }


# ------------------------------------------------------------------ refusals


def test_a_label_without_an_image_is_an_error() -> None:
    assert "labels/b.nii" in refusal("images/a.nii", "labels/a.nii", "labels/b.nii")
    assert "c2/seg.nii" in refusal("c1/ct.nii", "c1/seg.nii", "c2/seg.nii")


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("ct", "ct/masks")])
@pytest.mark.parametrize("labelled", [(), ("000", "001"), ("002", "003")])
def test_a_label_is_not_given_the_image_of_another_site(images, labels, labelled) -> None:
    """The image 002 of site 1 is missing, and site 2 has one of that name."""
    paths = [f"s1/{images}/{name}.nii" for name in ("000", "001", "003")]
    paths += [f"s1/{labels}/{name}.nii" for name in ("000", "001", "002", "003")]
    paths += [f"s2/{images}/{name}.nii" for name in ("000", "001", "002", "003")]
    paths += [f"s2/{labels}/{name}.nii" for name in labelled]
    assert f"s1/{labels}/002.nii has no matching image" in refusal(*paths)


@pytest.mark.parametrize(
    "paths",
    [
        ("batch0/images/a.nii", "batch1/images/b.nii", "batch0/labels/a.nii", "batch0/labels/b.nii"),
        ("p/anat/p_t1.nii", "p/dwi/p_adc.nii", "p/anat/p_t1_seg.nii", "p/anat/p_adc_seg.nii"),
    ],
)
def test_names_that_occur_once_are_matched_wherever_they_are(paths) -> None:
    assert {case.label for case in cases_of(*paths)} == set(paths[2:])


def test_images_and_labels_may_be_in_separate_trees() -> None:
    paths = [f"raw/p{n}/p{n}.nii" for n in (1, 2, 3)] + [f"readers/A/p{n}_seg.nii" for n in (1, 2)]
    assert [case.label for case in cases_of(*paths)] == ["readers/A/p1_seg.nii", "readers/A/p2_seg.nii", None]


def test_a_lone_misnamed_label_is_not_given_to_the_only_image_beside_it() -> None:
    assert "labelled/b_seg.nii" in refusal("labelled/a.nii", "labelled/b_seg.nii", "unlabelled/c.nii")


def test_two_labels_of_one_image_are_an_error() -> None:
    message = refusal("a.nii", "a_seg.nii", "a_mask.nii")
    assert all(name in message for name in ("a_seg.nii", "a_mask.nii", " a.nii"))


def test_two_images_of_one_name_are_an_error() -> None:
    message = refusal("a.nii", "a.nii.gz", "a_seg.nii")
    assert "a.nii " in message and "a.nii.gz " in message


def test_a_label_that_matches_two_images_elsewhere_is_an_error() -> None:
    message = refusal("x/a.nii", "y/a.nii", "labels/a.nii")
    assert all(name in message for name in ("labels/a.nii", "x/a.nii", "y/a.nii"))


def test_a_missing_channel_is_an_error_that_names_the_case() -> None:
    paths = [f"imagesTr/p{n}_000{c}.nii" for n in (1, 2, 3) for c in (0, 1)]
    message = refusal(*[p for p in paths if p != "imagesTr/p2_0001.nii"], "labelsTr/p1.nii")
    assert "p2" in message and "0000, 0001" in message
    folders = [f"c{n}/{kind}.nii" for n in (1, 2, 3) for kind in ("t1", "t2")]
    message = refusal(*[p for p in folders if p != "c3/t2.nii"], "c1/seg.nii")
    assert "c3" in message and "t1, t2" in message


def test_order_of_paths_does_not_matter() -> None:
    paths = ["b.nii", "a.nii", "b_seg.nii", "a_seg.nii"]
    assert cases_of(*paths) == cases_of(*sorted(paths)) == cases_of(*reversed(paths))


# ------------------------------------------------------------------ dataset.json


def test_the_decathlon_maps_values_to_names() -> None:
    content = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"}}
    assert describe(content) == Description(("FLAIR", "T1w"), {0: "background", 1: "edema"})


def test_nnunet_maps_names_to_values_and_may_name_one_to_ignore() -> None:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": 2}}
    assert describe(content) == Description(("CT",), {0: "background", 1: "liver"}, ignore_value=2)


def test_regions_and_unknown_forms_name_nothing() -> None:
    assert describe({"modality": "CT"}) == describe({}) == Description()
    unknown = describe({"labels": ["liver"]})
    assert unknown.label_names == {} and "liver" in unknown.notes[0]


def test_names_are_read_in_the_order_of_numbers_and_from_a_list() -> None:
    names = [f"m{n}" for n in range(12)]
    assert describe({"channel_names": {str(n): name for n, name in enumerate(names)}}).channel_names == tuple(names)
    assert describe({"labels": ["background", "liver"]}).label_names == {0: "background", 1: "liver"}
    assert describe({"labels": {"0.0": "background", "1.0": "liver"}}).label_names == {0: "background", 1: "liver"}


@pytest.mark.parametrize("regions", [{"whole tumor": [1, 2]}, {"whole tumor": [1, 2, 3], "tumor core": [2, 3]}])
def test_regions_are_mentioned_and_not_used(regions) -> None:
    description = describe({"labels": {"background": 0, **regions}})
    assert description.label_names == {0: "background"}
    (note,) = description.notes
    assert ", ".join(regions) in note


def test_a_json_file_without_a_dictionary_is_refused(tmp_path) -> None:
    for text in ("{", "[1]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"dataset\.json"):
            read_mapping(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (
            ["sub-00/anat/sub-00_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"],
            ["derivatives/labels/sub-00/anat/sub-00_T1w_label-lesion_dseg.nii.gz",
             "derivatives/labels/sub-02/anat/sub-02_T1w_label-lesion_dseg.nii.gz"],
            [True, False, True],
        ),
        (
            ["rawdata/sub-verse004/sub-verse004_ct.nii.gz", "rawdata/sub-verse005/sub-verse005_ct.nii.gz"],
            ["derivatives/sub-verse005/sub-verse005_seg-vert_msk.nii.gz"],
            [False, True],
        ),
        (
            ["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii", "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii"],
            ["derivatives/sub-1/ses-2/sub-1_ses-2_dseg.nii"],
            [False, True],
        ),
    ],
)  # fmt: skip
def test_files_in_the_form_of_bids_are_paired_by_their_entities(images, labels, expected) -> None:
    assert split_roles(images + labels) == (images, labels)
    cases = pair(images, labels)
    assert [case.images[0] for case in cases] == images
    assert [case.label is not None for case in cases] == expected


def test_a_bids_label_that_may_belong_to_two_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"sub-1_dseg.*T1w.*T2w"):
        pair(["sub-1/sub-1_T1w.nii", "sub-1/sub-1_T2w.nii"], ["labels/sub-1_dseg.nii"])


@pytest.mark.parametrize("folder", ["segmentations", "masks"])
def test_a_label_file_per_structure_is_refused_with_what_to_do(folder) -> None:
    """TotalSegmentator's form."""
    images = [f"s{n}/ct.nii.gz" for n in range(3)]
    labels = [f"s{n}/{folder}/{name}.nii.gz" for n in range(3) for name in ("liver", "spleen")]
    with pytest.raises(UserError, match=r"per structure \(liver, spleen\).*one label file per case"):
        pair(images, labels)


@pytest.mark.parametrize(
    ("images", "labels", "structures"),
    [
        (  # TotalSegmentator writes no file for an organ that it has not found
            [f"s{n}/ct.nii.gz" for n in range(3)],
            [f"s{n}/segmentations/{name}.nii.gz" for n, names in enumerate(["ab", "bc", "ac"]) for name in names],
            "a, b, c",
        ),
        (
            [f"images/s{n}.nii.gz" for n in range(3)],
            [f"masks/{name}/s{n}.nii.gz" for n in range(3) for name in ("liver", "spleen")],
            "liver, spleen",
        ),
        (
            [f"images/s{n}.nii.gz" for n in range(3)],
            [f"labels/s{n}_{name}.nii.gz" for n in range(3) for name in ("left_lung", "spleen")],
            "left_lung, spleen",
        ),
    ],
)
def test_other_forms_of_a_label_file_per_structure_are_refused_alike(images, labels, structures) -> None:
    with pytest.raises(UserError, match=rf"per structure \({structures}\).*one label file per case"):
        pair(images, labels)


def test_labels_of_cases_without_an_image_are_not_taken_for_structures() -> None:
    with pytest.raises(UserError, match="no matching image"):
        pair(["images/a.nii.gz", "images/b.nii.gz"], ["labels/x.nii.gz", "labels/y.nii.gz"])
