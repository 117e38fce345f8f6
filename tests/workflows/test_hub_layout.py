# SPDX-License-Identifier: Apache-2.0
"""The unpacked zip is what MONAI sends to the Hugging Face Hub and takes from it (with a stand-in for the hub)."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import pytest
import torch

from scripts.cli.commands import main
from scripts.networks.residual_unet import ResidualUNet

ROOT = Path(__file__).resolve().parents[2]


class Hub:
    """Repositories in a folder, with the calls of `huggingface_hub` that `monai.bundle` makes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tags = folder, []

    def HfApi(self, token: str | None = None) -> Hub:
        return self

    def create_repo(self, repo_id: str, **_) -> None:
        (self.folder / repo_id).mkdir(parents=True)

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return repo_id

    def create_tag(self, repo_id: str, tag: str, **_) -> None:
        self.tags.append(tag)

    def list_repo_refs(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(tags=[SimpleNamespace(name=tag) for tag in self.tags], branches=[])

    def snapshot_download(self, repo_id: str, revision: str, local_dir: str) -> None:
        assert revision in self.tags
        shutil.copytree(self.folder / repo_id, local_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", stand_in)
    return stand_in


def test_a_bundle_goes_to_the_hub_and_comes_back_as_a_network(hub, shipped_weights, tmp_path, monkeypatch) -> None:
    assert main(["export", "zip", "--filepath", str(tmp_path / "ours.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "ours.zip") as archive:
        archive.extractall(tmp_path / "here")
    monai.bundle.push_to_hf_hub(
        repo="someone/ours", name="ours", bundle_dir=str(tmp_path / "here"), version="0.4.0", tag_as_latest_version=True
    )
    repository = hub.folder / "someone/ours"
    for name in ("configs/metadata.json", "configs/inference.json", "models/model.pt", "LICENSE", "README.md"):
        assert (repository / name).is_file(), name
    monkeypatch.syspath_prepend(str(ROOT))
    loaded = monai.bundle.load(
        name="ours",
        bundle_dir=str(tmp_path / "there"),
        source="huggingface_hub",
        repo="someone/ours",
        workflow_type="inference",
        device="cpu",
    )
    network = ResidualUNet(1, 3, (16, 32, 64, 128), stem_stride=1, norm="batch")
    network.load_state_dict(torch.load(shipped_weights, weights_only=True))
    image = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), network.eval()(image))
