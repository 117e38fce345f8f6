# SPDX-License-Identifier: Apache-2.0
"""The checks that training runs before it loads any volume."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from scripts.data.datalist import load_cases
from scripts.data.spec import CaseLists, DatasetSpec
from scripts.errors import UserError, root_user_error
from scripts.training import limits as memory_check
from scripts.training.inferer import FeatureInferer
from scripts.training.limits import check_before_evaluation, check_before_training, check_headers_before_training
from tests.check_folder import NAMES, CheckFolder
from tests.volume_files import affine, save


def check(cases, with_unlabelled=True, **dataset):
    given = {"spacing": [1.5, 2.0, 2.5], "roi_size": [16, 16, 16], **dataset}
    check_headers_before_training(DatasetSpec("", **given), cases, with_unlabelled)


@pytest.fixture
def folder(tmp_path) -> CheckFolder:
    return CheckFolder(tmp_path / "data")


@pytest.fixture
def cases(folder) -> CaseLists:
    folder.run()  # writes dataset.json
    return load_cases(DatasetSpec(folder.root, labelled_cases=4))


def test_a_valid_folder_passes_and_is_logged(cases, caplog) -> None:
    with caplog.at_level("INFO", logger="check"):
        check(cases)
    assert "7 cases" in caplog.text


def test_the_error_names_the_first_mistake_and_counts_the_others(folder, cases) -> None:
    for name in ("l1", "l3"):
        folder.save_label(name, folder.classes()[1:])
    with pytest.raises(UserError, match=r"l1\.nii\.gz .*17 x 17 x 16.*1 more.*check_data"):
        check(cases)


def test_unlabelled_images_are_checked_only_if_they_are_used(folder, cases) -> None:
    folder.image("u1").write_text("no image")
    with pytest.raises(UserError, match=r"u1\.nii\.gz"):
        check(cases)
    check(cases, with_unlabelled=False)


def test_test_cases_are_not_read(folder, cases) -> None:
    folder.image("t0").write_text("no image")
    folder.label("t1").unlink()
    check(cases)


def test_evaluation_checks_the_channels_of_its_cases(folder, cases) -> None:
    check_before_evaluation(cases.test, in_channels=1)
    folder.save_image("t1", np.stack([folder.intensities(0)] * 2, axis=-1))
    with pytest.raises(UserError, match=r"t1\.nii\.gz .*2 channels"):
        check_before_evaluation(cases.test, in_channels=1)


def test_warnings_are_counted_and_do_not_stop(folder, cases, caplog) -> None:
    image = nibabel.load(folder.image("u0"))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), folder.image("u0"))
    check(cases)
    assert ": 1;" in caplog.text


def test_training_stops_on_a_shifted_label_before_a_volume_is_read(folder, make_workflow, monkeypatch) -> None:
    grid = affine()
    grid[0, 3] += 5
    folder.save_label("l2", folder.classes(), grid)
    folder.run()  # writes dataset.json
    monkeypatch.setattr(memory_check, "check_memory", lambda *_: None)
    monkeypatch.setattr("scripts.images.monai.read_volume", lambda path: pytest.fail(f"{path} was read"))
    workflow = make_workflow(
        "train.yaml", dataset_dir=str(folder.root), labelled_cases=4, label_names=["background", "organ", "vessel"]
    )
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "l2.nii.gz" in str(root_user_error(caught.value))


def test_labels_of_other_programs_are_checked_for_grid_and_values(folder, cases) -> None:
    given = {
        "directory": folder.root,
        "foreign_labels": "foreign_labels",
        "label_names": NAMES,
        "roi_size": [16, 16, 16],
    }

    def check_foreign() -> None:
        check_headers_before_training(DatasetSpec(**given, spacing=[1.5, 2.0, 2.5]), cases)

    with pytest.raises(UserError, match="foreign_labels"):
        check_foreign()
    file = folder.root / "foreign_labels/u1.nii.gz"
    save(file, folder.classes(), affine())
    check_foreign()
    save(file, folder.classes()[1:], affine())
    with pytest.raises(UserError, match=r"foreign_labels/u1\.nii\.gz .*17 x 17 x 16"):
        check_foreign()
    save(file, folder.classes() * 50, affine())
    with pytest.raises(UserError, match=r"foreign_labels/u1\.nii\.gz has the value 50, 100"):
        check_foreign()


def test_labels_of_other_programs_without_self_training_are_refused(folder, cases) -> None:
    network, dataset = torch.nn.Conv3d(1, 3, 1), DatasetSpec(folder.root, foreign_labels="foreign_labels")
    with pytest.raises(UserError, match="foreign_labels"):
        check_before_training(network, dataset, cases, 1, 1, FeatureInferer("encoder"), self_training=False)
