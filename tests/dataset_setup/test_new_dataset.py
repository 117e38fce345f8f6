# SPDX-License-Identifier: Apache-2.0
"""`new_dataset` chooses settings from the volumes, finds cases in all layouts, and splits them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.data.weights import CASES, record_of
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request
from scripts.errors import UserError
from tests.scan_folder import MACHINE, SHAPE, make_folder, refusal, volume

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("air", [0.0, -1000.0], ids=["mr", "ct"])
def test_what_is_written_trains_behind_the_default_config(tmp_path: Path, run, air: float) -> None:
    folder = make_folder(tmp_path / "my scans.v1", air=air)
    settings, _, _ = run(folder)
    assert settings["intensity"]["_target_"] == ("ScaleIntensityRanged" if air else "Compose")
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / "train.yaml"), str(tmp_path / "configs" / "mine.yaml")],
        workflow_type="train",
        bundle_root=str(ROOT),
        output_dir=str(tmp_path / "out"),
        ckpt_dir=str(tmp_path / "models"),
        device="cpu",
        precision="fp32",
        widths=[4, 4, 4, 4],
        norm="instance",
        max_steps=2,
        unlabelled_start=0.0,
    )
    workflow.initialize()
    workflow.run()
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())
    low, high = np.asarray(record_of(weights, CASES)["intensity"][0]).T
    assert low.min() > -20 and high.max() < 20  # the recorded ranges are those of normalised images


def test_settings_follow_the_volumes(tmp_path: Path, run) -> None:
    settings, cases, text = run(make_folder(tmp_path / "data", classes=(1, 2)))
    assert settings["in_channels"] == 1
    assert settings["label_names"] == ["background", "structure 1", "structure 2"]
    assert "label_values" not in settings and "ignore_value" not in settings
    assert settings["spacing"] == [1.5, 1.5, 2.0]
    assert settings["roi_size"] == [24, 16, 16]
    assert (settings["stem_stride"], settings["norm"], settings["widths"]) == (1, "batch", [16, 32, 64, 128])
    assert settings["flip_axes"] == [] and settings["labelled_cases"] is None
    assert (len(cases.labelled), len(cases.unlabelled), len(cases.test)) == (4, 3, 1)
    assert "8: 5 with label, 3 without" in text
    rows = [line.split() for line in text.splitlines() if line.endswith(("background", "structure 1", "structure 2"))]
    inside = 5 * 8 * 8
    assert rows == [
        ["0", "5", str(5 * (np.prod(SHAPE) - 2 * inside)), "background"],
        ["1", "5", str(5 * inside), "structure", "1"],
        ["2", "5", str(5 * inside), "structure", "2"],
    ]


def test_every_setting_has_a_comment(tmp_path: Path, run) -> None:
    run(make_folder(tmp_path / "data", air=-1000.0))
    lines = (tmp_path / "configs" / "mine.yaml").read_text().splitlines()
    bare = [line.split(":")[0] for line in lines if ":" in line and "#" not in line]
    assert bare == ["dataset_name", "  _target_", "  keys", "  b_min", "  b_max", "  clip"]


def test_values_with_gaps_are_mapped_to_classes(tmp_path: Path, run) -> None:
    settings, _, _ = run(make_folder(tmp_path / "mask", classes=(255,)))
    assert settings["label_values"] == [0, 255]
    assert settings["label_names"] == ["background", "structure 255"]
    settings, _, _ = run(
        make_folder(tmp_path / "ignore", classes=(2, 255)),
        name="ignore",
        ignore_value=255,
        label_names=("nothing", "liver"),
    )
    assert settings["label_values"] == [0, 2]
    assert settings["label_names"] == ["nothing", "liver"]
    assert settings["ignore_value"] == 255


def test_ct_is_clipped_to_percentiles_of_the_foreground_in_training_cases(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data", air=-1000.0)
    settings, cases, _ = run(folder)
    images = [np.asarray(nibabel.load(case["image"]).dataobj) for case in cases.labelled]
    masks = [np.asarray(nibabel.load(case["label"]).dataobj) > 0 for case in cases.labelled]
    low, high = np.percentile(np.concatenate([i[m] for i, m in zip(images, masks, strict=True)]), [0.5, 99.5])
    assert settings["intensity"]["a_min"] == pytest.approx(low, abs=0.06)
    assert settings["intensity"]["a_max"] == pytest.approx(high, abs=0.06)


def test_without_unlabelled_cases_no_unlabelled_patches_are_drawn(tmp_path: Path, run) -> None:
    settings, cases, _ = run(make_folder(tmp_path / "data", unlabelled=0))
    assert settings["batch_unlabelled"] == 0 and not cases.unlabelled


def test_findings_are_shown_before_anything_is_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    config = folder / "x.yaml"
    there: list[tuple[bool, bool]] = []
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        there.append(((folder / "dataset.json").exists(), config.exists()))

    assert new_dataset(Request(folder, "x"), MACHINE, show) == config
    assert "8: 5 with label" in shown[0] and there == [(False, False), (True, True)]


def test_a_folder_name_with_special_characters_of_configs_is_read_literally(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "a@b 1: $x %y, it's {z}")
    run(folder)
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / "train.yaml"), str(tmp_path / "configs" / "mine.yaml")])
    assert parser.get_parsed_content("dataset_dir") == str(folder)
    numbered = folder.rename(tmp_path / "scans #2")
    assert "--output" in refusal(run, numbered, name="numbered")
    _, cases, _ = run(numbered, name="numbered", output=tmp_path / "lists")
    assert Path(cases.test[0]["image"]).parent == numbered / "images"


def test_readme_shows_the_commands_that_are_printed(tmp_path: Path, run) -> None:
    _, _, text = run(make_folder(tmp_path / "data"))
    printed = re.findall(r"^\w+: +(python -m scripts .+)$", text, re.MULTILINE)
    assert len(printed) == 3
    assert set(printed) <= set((ROOT / "README.md").read_text().splitlines())


# ------------------------------------------------------------------ layouts on disk


def test_decathlon_test_images_are_left_out_unless_asked_for(tmp_path: Path, run) -> None:
    folder = tmp_path / "Task"
    for n in range(5):
        volume(folder / "imagesTr" / f"h_{n}.nii.gz")
        volume(folder / "labelsTr" / f"h_{n}.nii.gz", classes=(1,))
    volume(folder / "imagesTs" / "h_9.nii.gz")
    listed = {
        "name": "Hip", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "hippocampus"},
        "training": [{"image": f"./imagesTr/h_{n}.nii.gz", "label": f"./labelsTr/h_{n}.nii.gz"} for n in range(5)],
        "test": ["./imagesTs/h_9.nii.gz"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(listed))
    before = (folder / "dataset.json").read_bytes()
    settings, cases, text = run(folder)
    assert settings["label_names"] == ["background", "hippocampus"]
    assert "dataset.json names MRI" in text
    assert "--use_test_images" in text
    assert (len(cases.labelled), len(cases.unlabelled), len(cases.test)) == (4, 0, 1)
    assert settings["datalist"] == "dataset_mine.json"
    assert (folder / "dataset.json").read_bytes() == before
    _, cases, _ = run(folder, use_test_images=True, force=True)
    assert [case["case"] for case in cases.unlabelled] == ["h_9"]


def test_nnunet_channels_names_and_ignore_label_are_taken_over(tmp_path: Path, run) -> None:
    folder = tmp_path / "Dataset007"
    for n in range(3):
        for channel in range(2):
            volume(folder / "imagesTr" / f"p{n}_000{channel}.nii.gz", seed=channel)
        volume(folder / "labelsTr" / f"p{n}.nii.gz", classes=(1, 2))
    meta = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1, "ignore": 2}}
    (folder / "dataset.json").write_text(json.dumps({**meta, "numTraining": 3, "file_ending": ".nii.gz"}))
    settings, cases, _ = run(folder)
    assert settings["in_channels"] == 2
    assert settings["label_names"] == ["background", "tumour"]
    assert settings["ignore_value"] == 2 and "label_values" not in settings
    assert all(len(case["image"]) == 2 for case in cases.labelled)
    assert [case["case"] for case in cases.labelled] == ["p0", "p1", "p2"]


def test_cases_in_folders_keep_their_folders_names(tmp_path: Path, run) -> None:
    for name in ("Ä 1", "b.2", "c"):
        volume(tmp_path / "data" / name / "imaging.nii.gz")
        if name != "c":
            volume(tmp_path / "data" / name / "segmentation.nii.gz", classes=(1,))
    _, cases, _ = run(tmp_path / "data")
    assert sorted(case["case"] for case in cases.labelled) == ["b.2", "Ä 1"]
    assert [case["case"] for case in cases.unlabelled] == ["c"]


def test_unlabelled_images_may_be_in_a_separate_folder(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "labelled", unlabelled=0)
    volume(tmp_path / "more" / "test" / "x.nii.gz")
    volume(tmp_path / "more" / "test" / "x_seg.nii.gz", classes=(7,))  # not opened: these are images only
    settings, cases, _ = run(folder, unlabelled=tmp_path / "more")
    assert [case["image"] for case in cases.unlabelled] == [str(tmp_path / "more" / "test" / "x.nii.gz")]
    assert "label_values" not in settings


def test_labels_in_the_folder_of_the_option_unlabelled_are_not_used(tmp_path: Path, run) -> None:
    folder = tmp_path / "data"
    for n in range(3):
        volume(folder / "a" / f"l{n}.nii.gz")
        volume(folder / "a" / f"l{n}_seg.nii.gz", classes=(1,))
    volume(folder / "b" / "u.nii.gz")
    volume(folder / "b" / "u_seg.nii.gz", classes=(9,))
    settings, cases, _ = run(folder, unlabelled=folder / "b")
    assert [case["case"] for case in cases.unlabelled] == ["u"]
    assert len(settings["label_names"]) == 2


def test_labels_may_be_in_a_folder_outside_the_dataset(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    (folder / "labels").rename(tmp_path / "experts")
    _, cases, _ = run(folder, labels=tmp_path / "experts")
    assert len(cases.labelled) == 4
    assert Path(cases.labelled[0]["label"]).parent == tmp_path / "experts"


def test_a_complete_datalist_of_the_users_own_is_used_as_it_is(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data", labelled=3, unlabelled=1)
    pairs = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(3)]
    own = {"training": pairs[:2], "unlabeled": ["images/c3.nii.gz"], "test": pairs[2:]}
    (folder / "dataset.json").write_text(json.dumps(own))
    settings, cases, _ = run(folder)
    assert settings["datalist"] == "dataset.json"
    assert json.loads((folder / "dataset.json").read_text()) == own
    assert [case["case"] for case in cases.test] == ["c2"]


def decathlon(folder: Path, **lists) -> Path:
    """Three labelled cases and an unlabelled one, of which `dataset.json` lists the first two and what is given."""
    make_folder(folder, labelled=3, unlabelled=1)
    pairs = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(2)]
    (folder / "dataset.json").write_text(json.dumps({"training": pairs, **lists}))
    return folder


def test_labels_of_test_cases_that_are_listed_but_not_published_are_mentioned(tmp_path: Path, run) -> None:
    """As in the datalist of AMOS, whose labelsTs was never published."""
    hidden = {"image": "images/c3.nii.gz", "label": "labelsTs/c3.nii.gz"}
    settings, cases, text = run(decathlon(tmp_path / "data", test=[hidden]))
    assert len(cases.labelled) == 2 and not cases.test and settings["datalist"] == "dataset_mine.json"
    assert "1 labels of test cases do not exist" in text and "labelsTs/c3.nii.gz" in text


def test_files_that_a_datalist_does_not_list_are_counted(tmp_path: Path, run) -> None:
    folder = decathlon(tmp_path / "data", unlabeled=["images/c3.nii.gz"])
    for apart in ("corrected_labels", "foreign_labels", "outputs/pseudo_labels"):
        volume(folder / apart / "c3.nii.gz", classes=(1,))
    _, _, text = run(folder)
    assert "2 image files below" in text and "images/c2.nii.gz" in text


@pytest.mark.parametrize("training", ["training", "train", "development"])
def test_lists_without_a_meaning_are_mentioned(tmp_path: Path, run, training: str) -> None:
    """Without a list `training`, the cases are found by their names."""
    folder = make_folder(tmp_path / "data", labelled=3, unlabelled=1)
    pairs = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(3)]
    (folder / "dataset.json").write_text(json.dumps({training: pairs[:2], "extra": pairs[2:]}))
    _, cases, text = run(folder)
    assert "`extra`" in text and ("`development`" in text) == (training == "development")
    assert len(cases.labelled) == (3 if training == "development" else 2)


def test_the_lists_train_val_and_test_of_an_author_are_kept(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data", labelled=4, unlabelled=0)
    pairs = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"train": pairs[:2], "val": pairs[2:3], "test": pairs[3:]}))
    _, cases, _ = run(folder)
    assert [len(each) for each in (cases.labelled, cases.validation, cases.test)] == [2, 1, 1]
    assert cases.test[0]["image"].endswith("c3.nii.gz")


def test_every_missing_file_of_a_datalist_counts(tmp_path: Path, run) -> None:
    folder = decathlon(tmp_path / "data")
    for name in ("images/c0.nii.gz", "labels/c0.nii.gz", "labels/c1.nii.gz"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"c0\.nii\.gz.*2 more"):
        run(folder)


def test_lists_whose_files_are_elsewhere_are_not_used_and_mentioned(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    (folder / "images").rename(folder / "imagesTr")
    elsewhere = [{"image": f"/gone/c{n}.nii.gz", "label": f"/gone/l{n}.nii.gz"} for n in range(2)]
    (folder / "dataset.json").write_text(json.dumps({"training": elsewhere}))
    _, cases, text = run(folder)
    assert len(cases.unlabelled) == 3 and "/gone/c0.nii.gz does not exist" in text


@pytest.mark.parametrize("absolute", [True, False])
def test_the_files_that_nnunet_lists_by_case_are_taken(tmp_path: Path, run, absolute: bool) -> None:
    folder = make_folder(tmp_path / "data", labelled=0, unlabelled=6)
    listed = {}
    for n in range(3):
        (folder / f"images/c{n + 3}.nii.gz").rename(folder / f"images/other_{n}.nii.gz")
        volume(folder / f"reference/of_{n}.nii.gz", classes=(1,))
        files = [
            str(folder / name) if absolute else name for name in (f"images/c{n}.nii.gz", f"images/other_{n}.nii.gz")
        ]
        listed[f"case {n}"] = {"images": files, "label": f"reference/of_{n}.nii.gz"}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1}, "dataset": listed}
    (folder / "dataset.json").write_text(json.dumps(content))
    settings, cases, _ = run(folder)
    assert settings["in_channels"] == 2 and settings["label_names"] == ["background", "organ"]
    assert [case["case"] for case in cases.labelled] == ["case 0", "case 1", "case 2"]
    assert [Path(path).name for path in cases.labelled[1]["image"]] == ["c1.nii.gz", "other_1.nii.gz"]
    del content["dataset"]["case 1"]["label"]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="case 1"):
        run(folder, name="again")


@pytest.mark.parametrize(("voxels", "mentioned"), [(9, True), (10, False)])
def test_a_value_of_few_voxels_is_mentioned(tmp_path: Path, run, voxels: int, mentioned: bool) -> None:
    folder = make_folder(tmp_path / "data")
    file = folder / "labels/c1.nii.gz"
    label = np.asarray(nibabel.load(file).dataobj).copy()
    label[0, 0, :voxels] = 77
    nibabel.save(nibabel.Nifti1Image(label, np.diag([1.5, 1.5, 2.0, 1.0])), file)
    assert ("77 (structure 77, 9 voxels in 1 files)" in run(folder)[2]) == mentioned


def test_a_value_that_float64_does_not_hold_is_refused(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    file = folder / "labels/c1.nii.gz"
    label = np.asarray(nibabel.load(file).dataobj).astype(np.int64) * (2**60 + 1)
    nibabel.save(nibabel.Nifti1Image(label, np.diag([1.5, 1.5, 2.0, 1.0]), dtype=np.int64), file)
    with pytest.raises(UserError, match=str(2**60 + 1)):
        run(folder)


# ------------------------------------------------------------------ the split


def test_test_cases_can_be_counted_or_left_out(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    _, cases, _ = run(folder, test_cases=2)
    assert (len(cases.labelled), len(cases.test)) == (3, 2)
    _, cases, text = run(folder, test_fraction=0, force=True)
    assert (len(cases.labelled), len(cases.test)) == (5, 0)
    assert "--test_cases" in text and "Evaluate:" not in text


def test_no_image_of_a_test_patient_trains(tmp_path: Path, run) -> None:
    folder = tmp_path / "data"
    for patient in range(4):
        for visit in range(2):
            volume(folder / "images" / f"p{patient}_v{visit}.nii.gz")
        volume(folder / "labels" / f"p{patient}_v0.nii.gz", classes=(1,))
    _, cases, text = run(folder, test_cases=1, patient_pattern=r"p\d")
    tested = cases.test[0]["case"][:2]
    assert len(cases.unlabelled) == 3
    assert all(not case["case"].startswith(tested) for case in cases.labelled + cases.unlabelled)
    assert "Note: 1 unlabelled" in text


def test_a_name_for_0_and_background_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "liver", "1": "background"}}))
    assert "background" in refusal(new_dataset, Request(folder, "mine", output=tmp_path / "out"), MACHINE)


def test_voxels_smaller_than_any_scanners_are_mentioned(tmp_path: Path, run) -> None:
    folder = make_folder(tmp_path / "data")
    for path in [*folder.glob("images/*"), *folder.glob("labels/*")]:
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[:3] /= 1000
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    _, _, text = run(folder)
    assert "unit" in text and "0.0015" in text
