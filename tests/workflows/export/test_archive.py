# SPDX-License-Identifier: Apache-2.0
"""The zipped bundle holds what it needs, nothing else, and runs where it is unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import pytest
import torch

from scripts.errors import BundleError
from scripts.networks.vnet import VNet
from scripts.workflows.export.archive import zip_bundle

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle with weights, and with all that grows in a bundle that is used."""
    root = tmp_path / "bundle"
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    for name in ("LICENSE", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    torch.manual_seed(0)
    (root / "models").mkdir()
    torch.save(VNet(1, 4, base_filters=8, norm="instance").state_dict(), root / "models/model.pt")
    for name in (
        *("models/state_00000100.pt", "models/.model.pt.12.tmp", "outputs/metrics.csv", "data/demo/images/a.nii.gz"),
        *("scripts/__pycache__/export.cpython-311.pyc", ".git/config", "configs/.train.yaml.swp", ".venv/bin/python"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("not for others")
    return root


def test_nothing_that_grew_in_the_folder_is_in_it(bundle, tmp_path) -> None:
    names = zip_bundle(bundle, tmp_path / "B.zip")
    assert {"configs/metadata.json", "scripts/networks/vnet.py", "models/model.pt", "LICENSE"} <= set(names)
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        assert archive.namelist() == [f"B/{name}" for name in names]
        assert not any(archive.read(name) == b"not for others" for name in archive.namelist())


def test_a_bundle_without_weights_is_not_zipped(bundle, tmp_path) -> None:
    (bundle / "models/model.pt").unlink()
    with pytest.raises(BundleError, match=r"no models/model\.pt: train first"):
        zip_bundle(bundle, tmp_path / "B.zip")
    assert not (tmp_path / "B.zip").exists()


def test_unpacked_elsewhere_it_segments_from_any_working_directory(bundle, tiny_demo, tmp_path) -> None:
    zip_bundle(bundle, tmp_path / "B.zip")
    shutil.rmtree(bundle)
    elsewhere, working = tmp_path / "else where", tmp_path / "empty"
    working.mkdir()
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        archive.extractall(elsewhere)
    image = sorted((tiny_demo / "images").iterdir())[0]
    config = f"{elsewhere}/B/configs/inference.yaml"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [
            *(
                sys.executable,
                "-P",
                "-m",
                "monai.bundle",
                "run",
                "--config_file",
                config,
            ),
            *("--bundle_root", f"{elsewhere}/B", "--dataset_dir", str(image), "--output_dir", "out", "--device", "cpu"),
        ],
        cwd=working,
        env=environment,
        check=True,
        capture_output=True,
    )
    (written,) = (path for path in (working / "out").iterdir() if path.name.endswith("_seg.nii.gz"))
    assert nib.load(written).shape == nib.load(image).shape
