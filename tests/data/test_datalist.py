# SPDX-License-Identifier: Apache-2.0
"""Reading a datalist: cases for training, validation and test, and errors of unusable lists."""

from __future__ import annotations

import json
import re

import pytest

from scripts.data.checks.finding import Kind
from scripts.data.datalist import load_cases, load_test_cases, named_files, read_cases, with_references
from scripts.data.spec import DatasetSpec
from scripts.errors import UserError


def pairs(*names):
    return [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in names]


@pytest.fixture
def write(tmp_path):
    """Write a datalist and an empty file for every path that it names, except those in `missing`."""

    def write_datalist(content, missing=(), name="dataset.json"):
        for section in content.values():
            for entry in section if isinstance(section, list) else []:
                values = list(entry.values()) if isinstance(entry, dict) else [entry]
                for value in values:
                    for path in value if isinstance(value, list) else [value]:
                        if isinstance(path, str) and path not in missing and ".." not in path:
                            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                            (tmp_path / path).touch()
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write_datalist


def names(cases):
    return [case["case"] for case in cases]


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load_cases(DatasetSpec(*args, **kwargs))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_cases_with_the_same_file_name_get_their_folders_in_front(write):
    folders = {"training": ["a", "b"], "unlabeled": ["c"], "test": ["d"]}
    content = {
        section: [{"image": f"{name}/imaging.nii.gz", "label": f"{name}/label.nii.gz"} for name in names]
        for section, names in folders.items()
    }
    root = write(content)
    for labelled in (1, 2):
        cases = load_cases(DatasetSpec(root, labelled_cases=labelled))
        assert names(cases.labelled + cases.unlabelled) == ["a_imaging", "b_imaging", "c_imaging"]
    assert names(cases.test) == ["imaging"]


def test_all_training_cases_are_labelled_unless_a_number_is_given(write):
    root = write({"training": pairs("a", "b", "c")})
    cases = load_cases(DatasetSpec(root))
    assert cases.labelled == [
        {"image": f"{root}/images/{n}.nii.gz", "label": f"{root}/labels/{n}.nii.gz", "case": n} for n in "abc"
    ]
    assert cases.unlabelled == cases.validation == cases.test == []


def test_a_case_may_have_a_name_in_the_list(write):
    """Cases whose files have equal names in different folders would otherwise share a name."""
    root = write({"training": pairs("p1/imaging", "p2/imaging")})
    listed = [{**case, "case": f"p{n}"} for n, case in enumerate(pairs("p1/imaging", "p2/imaging"), start=1)]
    (root / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    assert names(load_cases(DatasetSpec(root)).labelled) == ["p1", "p2"]


def test_the_first_cases_are_labelled_and_the_rest_are_images_without_a_label_entry(write):
    cases = load_cases(DatasetSpec(write({"training": pairs("a", "b", "c", "d")}), labelled_cases=2))
    assert names(cases.labelled) == ["a", "b"]
    assert names(cases.unlabelled) == ["c", "d"]
    assert all(set(case) == {"image", "case"} for case in cases.unlabelled)


def test_the_label_file_of_an_unlabelled_case_need_not_exist(write):
    root = write({"training": pairs("a", "b")}, missing=["labels/b.nii.gz"])
    assert names(load_cases(DatasetSpec(root, labelled_cases=1)).unlabelled) == ["b"]


def test_without_a_number_cases_without_a_label_are_unlabelled_at_any_position(write):
    training = [{"image": "images/x.nii.gz"}, *pairs("a"), "images/y.nii.gz", *pairs("b")]
    cases = load_cases(DatasetSpec(write({"training": training})))
    assert names(cases.labelled) == ["a", "b"]
    assert names(cases.unlabelled) == ["x", "y"]


def test_an_unlabeled_section_joins_the_unlabelled_cases_and_loses_its_labels(write):
    cases = load_cases(
        DatasetSpec(write({"training": pairs("a", "b"), "unlabeled": [*pairs("u"), "v.nii.gz"]}), labelled_cases=1)
    )
    assert names(cases.unlabelled) == ["b", "u", "v"]
    assert not any("label" in case for case in cases.unlabelled)


def test_validation_and_test_sections_never_reach_training(write):
    cases = load_cases(
        DatasetSpec(write({"training": pairs("a"), "validation": pairs("v"), "test": ["./images/t.nii.gz"]}))
    )
    assert names(cases.labelled) == ["a"]
    assert names(cases.validation) == ["v"]
    assert names(cases.test) == ["t"]
    assert cases.unlabelled == []


def test_validation_cases_are_the_last_labelled_ones_and_leave_training(write):
    content = {"training": pairs("a", "b", "c", "d"), "validation": pairs("v")}
    cases = load_cases(DatasetSpec(write(content), labelled_cases=3, validation_cases=2))
    assert names(cases.labelled) == ["a"]
    assert names(cases.validation) == ["b", "c", "v"]
    assert names(cases.unlabelled) == ["d"]
    assert all("label" in case for case in cases.validation)


def test_channels_keep_their_order_and_the_first_names_the_case(write):
    channels = ["x_t2.nii.gz", "x_flair.nii.gz"]
    root = write({"training": [{"image": channels, "label": "x.nii.gz"}]})
    (case,) = load_cases(DatasetSpec(root)).labelled
    assert case["image"] == [f"{root}/x_t2.nii.gz", f"{root}/x_flair.nii.gz"]
    assert case["case"] == "x_t2"


def test_an_absolute_path_is_taken_as_it_is(write, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "z.nii.gz"
    root = write({"training": [{"image": str(elsewhere), "label": "labels/z.nii.gz"}]})
    assert load_cases(DatasetSpec(root)).labelled[0]["image"] == str(elsewhere)


def test_an_absolute_datalist_may_lie_outside_the_data(write, tmp_path_factory):
    root = write({"training": pairs("a")})
    other = tmp_path_factory.mktemp("lists") / "mine.json"
    other.write_text(json.dumps({"training": pairs("a")}))
    (root / "dataset.json").unlink()
    assert names(load_cases(DatasetSpec(root, datalist=str(other))).labelled) == ["a"]


def test_a_missing_folder_is_named_with_its_option(tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "--dataset_dir" in message


def test_a_missing_datalist_is_named(tmp_path):
    message = refusal(tmp_path, datalist="mine.json")
    assert str(tmp_path / "mine.json") in message
    assert "docs/data.md" in message


def test_broken_json_is_named_with_its_place(tmp_path):
    (tmp_path / "dataset.json").write_text('{"training": [\n,]}')
    message = refusal(tmp_path)
    assert str(tmp_path / "dataset.json") in message
    assert "line 2" in message


@pytest.mark.parametrize("text", ["[]", "{}", '{"training": "a.nii.gz"}', '{"training": []}'])
def test_a_datalist_without_training_cases_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    message = refusal(tmp_path)
    assert "`training`" in message
    assert str(tmp_path / "dataset.json") in message


@pytest.mark.parametrize("section", ["unlabeled", "validation", "test"])
def test_a_section_that_is_not_a_list_is_named(write, section):
    # A string would be read letter by letter, as one case each.
    message = refusal(write({"training": pairs("a"), section: "images"}))
    assert f"`{section}`" in message


@pytest.mark.parametrize("entry", [{}, {"label": "labels/b.nii.gz"}, {"image": ""}, 3, ["images/b.nii.gz"]])
def test_an_entry_without_an_image_is_shown_with_its_section(write, entry):
    message = refusal(write({"training": pairs("a"), "unlabeled": [entry]}))
    assert "`unlabeled`" in message
    assert repr(entry) in message


@pytest.mark.parametrize(
    "entry", [{"image": 7}, {"image": ["b.nii.gz", 7]}, {"image": "b.nii.gz", "label": ["c.nii.gz"]}]
)
def test_a_path_that_is_not_a_string_is_shown_with_its_section(write, entry):
    message = refusal(write({"training": pairs("a"), "validation": [entry]}))
    assert "`validation`" in message
    assert repr(entry) in message


@pytest.mark.parametrize("number", [0, -1, 4])
def test_labelled_cases_out_of_range_is_refused_with_the_range(write, number):
    message = refusal(write({"training": pairs("a", "b", "c")}), labelled_cases=number)
    assert "labelled_cases" in message and str(number) in message


@pytest.mark.parametrize("number", ["two", 1.5, True, [1]])
@pytest.mark.parametrize("key", ["labelled_cases", "validation_cases"])
def test_a_number_of_cases_of_another_type_is_refused(write, key, number):
    message = refusal(write({"training": pairs("a", "b", "c")}), **{key: number})
    assert key in message
    assert repr(number) in message


@pytest.mark.parametrize("number", [2, 3, -1])
def test_validation_cases_leave_at_least_one_for_training(write, number):
    message = refusal(write({"training": pairs("a", "b", "c")}), labelled_cases=2, validation_cases=number)
    assert "validation_cases" in message and str(number) in message


@pytest.mark.parametrize(("alias", "role"), [("unlabelled", "unlabelled"), ("testing", "test")])
def test_lists_have_other_names(write, alias, role):
    root = write({"training": pairs("a"), alias: pairs("b", "c")})
    assert names(getattr(load_cases(DatasetSpec(root)), role)) == ["b", "c"]
    assert len(named_files(root)[0]) == 3
    if role == "test":
        assert names(load_test_cases(DatasetSpec(root))) == ["b", "c"]


@pytest.mark.parametrize(("alias", "name"), [("unlabelled", "unlabeled"), ("testing", "test")])
def test_a_list_under_both_of_its_names_is_refused(write, alias, name):
    message = refusal(write({"training": pairs("a"), alias: pairs("b"), name: pairs("c")}))
    assert f"`{alias}`" in message and f"`{name}`" in message


def test_lists_without_a_meaning_are_named_in_a_warning(write, caplog):
    silent = {
        "modality": {"0": "CT"}, "labels": ["background", "liver"], "channel_names": {"0": "CT"}, "numTraining": 1,
        "test": ["images/t.nii.gz"], "dataset": {"a": {"images": ["a.nii.gz"]}}, "reference": ["https://x.org"],
    }  # fmt: skip
    root = write({"training": pairs("a"), **silent, "holdout": pairs("v"), "extra": ["images/x.nii.gz"]})
    findings = [finding for finding in read_cases(DatasetSpec(root))[1] if finding.kind is Kind.UNKNOWN_LIST]
    assert [finding.sentence.split("`")[1] for finding in findings] == ["holdout", "extra"]
    load_cases(DatasetSpec(root))
    assert [finding.sentence for finding in findings] == [
        r.getMessage() for r in caplog.records if r.levelname == "WARNING"
    ]


def test_a_list_that_should_be_called_training_is_named(write):
    assert "`development`" in refusal(write({"development": pairs("a")}))


def test_a_key_that_stands_twice_is_refused(write, tmp_path):
    root = write({"training": pairs("a")})
    file = root / "dataset.json"
    file.write_text(file.read_text()[:-1] + ', "training": []}')
    assert "`training`" in refusal(root)


def test_a_labelled_case_without_a_label_is_named(write):
    message = refusal(write({"training": [*pairs("a"), "images/b.nii.gz", *pairs("c")]}), labelled_cases=2)
    assert " b " in message and "labelled_cases" in message


def test_training_without_any_label_is_refused(write):
    message = refusal(write({"training": ["a.nii.gz", "b.nii.gz"]}))
    assert "label" in message


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_relative_path_that_leaves_the_folder_is_refused(write, key):
    entry = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", key: "images/../../a.nii.gz"}
    root = write({"training": [entry]})
    message = refusal(root)
    assert "images/../../a.nii.gz" in message
    assert str(root) in message


@pytest.mark.parametrize("missing", ["images/a.nii.gz", "labels/a.nii.gz", "images/u.nii.gz", "images/t.nii.gz"])
def test_a_missing_file_is_named(write, missing):
    root = write({"training": pairs("a"), "unlabeled": ["images/u.nii.gz"], "test": pairs("t")}, missing=[missing])
    message = refusal(root)
    assert str(root / missing) in message
    assert "--dataset_dir" in message


def test_a_missing_channel_is_named(write):
    entry = {"image": ["a0.nii.gz", "a1.nii.gz"], "label": "a.nii.gz"}
    root = write({"training": [entry]}, missing=["a1.nii.gz"])
    assert str(root / "a1.nii.gz") in refusal(root)


def test_folders_of_slices_and_their_series_are_images(tmp_path):
    for folder in ("scans/a", "scans/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "l.NRRD").touch()
    content = {"training": [{"image": "scans/a", "label": "l.NRRD"}], "unlabeled": ["scans/b#1.2.3", "scans/b#1.2.4"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = load_cases(DatasetSpec(tmp_path))
    assert names(cases.labelled) == ["a"]
    assert names(cases.unlabelled) == ["b#1.2.3", "b#1.2.4"]
    assert cases.unlabelled[0]["image"] == f"{tmp_path}/scans/b#1.2.3"
    (tmp_path / "scans/b").rmdir()
    assert "scans/b#1.2.3" in refusal(tmp_path)


def test_a_folder_of_slices_is_refused_as_a_label(write):
    root = write({"training": pairs("a")})
    (root / "labels/a.nii.gz").unlink()
    (root / "labels/a.nii.gz").mkdir()
    message = refusal(root)
    assert str(root / "labels/a.nii.gz") in message


def test_references_hold_the_label_under_a_key_that_preprocessing_does_not_change():
    cases = [{"image": "a.nii.gz", "label": "b.nii.gz", "case": "a"}]
    assert with_references(cases, "test") == [{"image": "a.nii.gz", "reference": "b.nii.gz", "case": "a"}]
    assert cases == [{"image": "a.nii.gz", "label": "b.nii.gz", "case": "a"}]


def test_evaluation_without_cases_names_the_list_to_add():
    with pytest.raises(UserError, match="`test`"):
        with_references([], "test")


def test_a_case_without_a_label_to_compare_with_is_named():
    cases = [{"image": "a", "label": "l", "case": "a"}, {"image": "b", "case": "b"}, {"image": "c", "case": "c"}]
    with pytest.raises(UserError, match="validation case b "):
        with_references(cases, "validation")


def test_the_numbers_of_cases_are_logged(tiny_demo, caplog) -> None:
    with caplog.at_level("INFO", logger="datalist"):
        load_cases(DatasetSpec(tiny_demo, labelled_cases=2))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "datalist"]
    assert re.findall(r"\d+", line) == ["2", "4", "1", "2"]  # labelled, unlabelled, validation, test


def test_validation_case_without_a_label_is_refused(write):
    """Without the error fewer cases, or none, would be left to choose the best model."""
    message = refusal(write({"training": pairs("a"), "validation": [*pairs("v"), "images/w.nii.gz"]}))
    assert " w " in message and "unlabeled" in message


@pytest.mark.parametrize(
    ("others", "labelled_cases"),
    [({}, 4), ({"training": []}, None), ({"training": pairs("a")}, 9), ({"training": ["images/b.nii.gz"]}, 1)],
)
def test_test_cases_need_no_other_list_and_no_number_of_labelled_cases(write, others, labelled_cases):
    root = write({**others, "test": pairs("t", "u")})
    assert names(load_test_cases(DatasetSpec(root, labelled_cases=labelled_cases, validation_cases=7))) == ["t", "u"]


@pytest.mark.parametrize(
    ("content", "missing", "named"),
    [
        ({"training": pairs("a"), "test": pairs("a")}, [], "images/a.nii.gz"),
        ({"unlabeled": ["images/a.nii.gz"], "test": pairs("a")}, [], "images/a.nii.gz"),
        ({"test": pairs("t")}, ["labels/t.nii.gz"], "labels/t.nii.gz"),
        ({"test": [{"label": "labels/t.nii.gz"}]}, [], "test"),
    ],
)
def test_unusable_test_cases_are_refused_by_name(write, content, missing, named):
    with pytest.raises(UserError, match=re.escape(named)):
        load_test_cases(DatasetSpec(write(content, missing)))


def test_training_without_any_label_is_not_blamed_on_labelled_cases(write, tmp_path):
    message = refusal(write({"training": ["images/a.nii.gz", {"image": "images/b.nii.gz"}]}))
    assert str(tmp_path / "dataset.json") in message and "labelled_cases" not in message


@pytest.mark.parametrize(
    ("content", "roles"),
    [
        ({"training": pairs("a", "b"), "test": pairs("b")}, ("labelled", "test")),
        ({"training": pairs("a"), "validation": pairs("a")}, ("labelled", "validation")),
        ({"training": pairs("a"), "unlabeled": ["images/a.nii.gz"]}, ("labelled", "unlabelled")),
        (
            {"training": pairs("a"), "unlabeled": ["images/u.nii.gz"], "test": [{"image": "./images/u.nii.gz"}]},
            ("unlabelled", "test"),
        ),
        (
            {
                "training": [{"image": ["t1.nii.gz", "t2.nii.gz"], "label": "l.nii.gz"}],
                "test": [{"image": ["x.nii.gz", "t2.nii.gz"]}],
            },
            ("labelled", "test"),
        ),
    ],
)
def test_image_in_two_roles_is_refused(write, content, roles):
    message = refusal(write(content))
    assert all(role in message for role in roles)


@pytest.mark.parametrize(
    ("content", "cases"),
    [
        ({"training": pairs("a", "b"), "test": [{"image": "images/t.nii.gz", "label": "labels/b.nii.gz"}]}, "bt"),
        (
            {"training": pairs("a"), "validation": [{"image": ["v.nii", "w.nii"], "label": "./labels/a.nii.gz"}]},
            ("a", "v"),
        ),
        ({"training": pairs("a"), "validation": pairs("v"), "test": [{**pairs("v")[0], "image": "t.nii"}]}, "vt"),
    ],
)
def test_a_label_of_two_images_in_two_splits_is_named_in_a_warning(write, content, cases, caplog):
    spec = DatasetSpec(write(content))
    findings = [finding for finding in read_cases(spec)[1] if finding.kind is Kind.LABEL_LEAK]
    (sentence,) = [finding.sentence for finding in findings]
    assert f"labels/{cases[0]}.nii.gz" in sentence and all(f" {case} (" in sentence for case in cases)
    load_cases(spec)
    assert [sentence] == [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_label_of_two_images_in_training_is_a_warning_and_that_of_an_unlabelled_case_is_none(write):
    """Contrasts of one scan can share a label."""
    content = {"training": [*pairs("a"), {"image": "t2.nii", "label": "labels/a.nii.gz"}, *pairs("a")], "test": []}
    lists, findings = read_cases(DatasetSpec(write(content)))
    assert len(lists.labelled) == 3 and [(f.kind, f.case) for f in findings] == [(Kind.LABEL_TWICE, "t2")]
    assert not read_cases(DatasetSpec(write(content), labelled_cases=1))[1][1:]


def test_a_training_case_that_labelled_cases_makes_unlabelled_may_not_be_a_test_case_either(write):
    root = write({"training": pairs("a", "b"), "test": pairs("b")})
    message = refusal(root, labelled_cases=1)
    assert "unlabelled" in message and "test" in message


# ------------------------------------------------------------------ all mistakes of a list


def test_all_mistakes_are_collected_and_usable_cases_are_returned(write):
    content = {
        "training": [*pairs("a", "b"), {"label": "labels/c.nii.gz"}, *pairs("d")],
        "validation": ["images/v.nii.gz"],
        "test": [*pairs("a"), "images/t.nii.gz"],
    }
    lists, findings = read_cases(
        DatasetSpec(write(content, missing=["labels/b.nii.gz", "labels/d.nii.gz"]), labelled_cases=2)
    )
    assert (names(lists.labelled), names(lists.unlabelled)) == (["a", "b"], ["d"])
    assert (names(lists.validation), names(lists.test)) == (["v"], ["a", "t"])
    assert [(finding.kind, finding.case, finding.role) for finding in findings] == [
        (Kind.BAD_ENTRY, "", ""),
        (Kind.MISSING_LABEL, "v", "validation"),
        (Kind.TEST_WITHOUT_LABEL, "t", "test"),
        (Kind.TWO_LISTS, "a", "test"),
        (Kind.MISSING_LABEL, "b", "labelled"),
    ]


@pytest.mark.parametrize(("given", "labelled", "validation"), [((9, 0), 3, 0), ((0, 0), 1, 0), ((3, 3), 1, 2)])
def test_numbers_out_of_range_become_the_nearest_possible_ones(write, given, labelled, validation):
    lists, findings = read_cases(DatasetSpec(write({"training": pairs("a", "b", "c")}), "dataset.json", *given))
    assert (len(lists.labelled), len(lists.validation)) == (labelled, validation)
    assert [finding.kind for finding in findings] == [Kind.SETTING]


def test_named_files_include_those_of_every_list(write):
    root = write({"training": pairs("a", "b"), "unlabeled": [*pairs("u"), 3], "test": ["images/t.nii.gz"]})
    images, labels = named_files(root)
    assert images == [f"{root}/images/{name}.nii.gz" for name in "abut"]
    assert labels == [f"{root}/labels/{name}.nii.gz" for name in "abu"]
