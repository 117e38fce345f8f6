# SPDX-License-Identifier: Apache-2.0
"""CT and PET as two channels, from a folder in nnU-Net's form to metrics: each channel is normalised by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from scripts.cli.commands import main
from scripts.files import csv_rows
from scripts.images.read import read_header
from tests.conftest import TINY
from tests.volume_files import affine, save

SHAPE = (20, 18, 16)


def write_cases(folder: Path, names: dict[str, str]) -> None:
    """Six labelled cases: CT of -1000 (air) to 300, PET of about 2 with 9 in the structure; two files a case."""
    draw = np.random.default_rng(0)
    for n in range(6):
        label = np.zeros(SHAPE, np.uint8)
        label[4:12, 4:12, 4:12] = 1
        ct = np.where(label == 1, 100, -1000) + draw.normal(0, 20, SHAPE)
        pet = np.where(label == 1, 9, 2) + draw.normal(0, 0.3, SHAPE)
        for channel, name in names.items():
            array = (ct if name == "CT" else pet).astype(np.float32)
            save(folder / f"imagesTr/c{n}_000{channel}.nii.gz", array, affine())
        save(folder / f"labelsTr/c{n}.nii.gz", label, affine())
    content = {"channel_names": names, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("names", [{"0": "CT", "1": "PET"}, {"0": "PET", "1": "CT"}])
def test_ct_and_pet_go_from_their_files_to_metrics(names, make_workflow, tmp_path) -> None:
    write_cases(tmp_path / "data", names)
    config = tmp_path / "petct.yaml"
    assert main(["new-dataset", str(tmp_path / "data"), "--name", "petct", "--config", str(config)]) == 0
    data = yaml.safe_load(config.read_text())
    assert data["in_channels"] == 2
    given = {key: data[key] for key in ("dataset_dir", "spacing")} | {"roi_size": [16, 16, 16]}
    workflow = make_workflow("train.yaml", config, **given)
    workflow.run()
    case = workflow.parser.get_parsed_content("cases").labelled[0]
    image = workflow.parser.get_parsed_content("validate::preprocessing")(case)["image"]
    ct, pet = image if names["0"] == "CT" else image.flip(0)
    assert (float(ct.min()), float(ct.max())) == (-1, 1)
    assert abs(float(pet.mean())) < 0.01 and float(pet.std()) == pytest.approx(1, abs=0.01)
    make_workflow("train.yaml", config, "evaluate.yaml", run_id="evaluating", **given).run()
    (row,) = csv_rows(tmp_path / "out/metrics.csv")
    assert row["class"] == "tumour" and 0 <= float(row["dice"]) <= 1
    settings = {key: TINY[key] for key in ("widths", "norm", "precision", "roi_size")}
    folder = str(tmp_path / "data/imagesTr")
    make_workflow(
        "inference.yaml", config, workflow_type="infer", **{**settings, "dataset_dir": folder, "roi_size": [16, 16, 16]}
    ).run()
    written = sorted((tmp_path / "out").glob("*_seg.nii.gz"))
    assert len(written) == 6 and all(read_header(file).shape == SHAPE for file in written)
