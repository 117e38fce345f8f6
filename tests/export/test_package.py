# SPDX-License-Identifier: Apache-2.0
"""The zip file contains the files that the bundle needs and no others, and runs after unpacking anywhere."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from scripts.cli.commands import main
from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.export.package import zip_bundle
from scripts.networks.residual_unet import ResidualUNet
from scripts.networks.vnet import VNet
from tests import forked_command
from tests.volume_files import oblique, save, volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path, shipped_weights: Path) -> Path:
    """A copy of the bundle with weights, and with files that appear when a bundle is used."""
    root = tmp_path / "bundle"
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    for name in ("LICENSE", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    (root / "models").mkdir()
    shutil.copy(shipped_weights, root / "models")
    for name in (
        *(
            "models/checkpoint_00000100.pt",
            "models/.model.pt.12.tmp",
            "outputs/metrics.csv",
            "data/demo/images/a.nii.gz",
        ),
        *("scripts/__pycache__/export.cpython-311.pyc", ".git/config", "configs/.train.yaml.swp", ".venv/bin/python"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("not for others")
    return root


def test_files_from_use_are_not_packed(bundle, tmp_path) -> None:
    names = zip_bundle(bundle, tmp_path / "B.zip")
    assert {"configs/metadata.json", "scripts/networks/vnet.py", "models/model.pt", "LICENSE"} <= set(names)
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        assert archive.namelist() == [f"B/{name}" for name in names]
        assert not any(archive.read(name) == b"not for others" for name in archive.namelist())


def test_experiments_and_examples_are_not_packed(bundle, tmp_path) -> None:
    shutil.copytree(ROOT / "docs/examples", bundle / "docs/examples")
    shutil.copytree(ROOT / "tests/campaigns", bundle / "tests/campaigns")
    names = zip_bundle(bundle, tmp_path / "B.zip")
    assert (bundle / "scripts/experiments/load.py").exists()
    assert not [name for name in names if name.startswith(("scripts/experiments", "docs/examples", "tests"))]


def test_a_bundle_without_weights_is_not_zipped(bundle, tmp_path) -> None:
    (bundle / "models/model.pt").unlink()
    with pytest.raises(UserError, match=r"models/model\.pt"):
        zip_bundle(bundle, tmp_path / "B.zip")
    assert not (tmp_path / "B.zip").exists()


def test_an_unpacked_zip_segments_from_any_working_directory(bundle, tmp_path) -> None:
    zip_bundle(bundle, tmp_path / "B.zip")
    shutil.rmtree(bundle)
    elsewhere, working = tmp_path / "else where", tmp_path / "empty"
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        archive.extractall(elsewhere)
    image = save(tmp_path / "scan.nii.gz", volume((31, 40, 28)), oblique((1.1, 0.9, 1.3)))
    config = f"{elsewhere}/B/configs/inference.yaml"
    forked_command.load_libraries()
    words = [
        *("monai.bundle", "run", "--config_file", config, "--bundle_root", f"{elsewhere}/B"),
        *("--dataset_dir", str(image), "--output_dir", "out", "--device", "cpu"),
    ]
    done = forked_command.run(words, working, prepare=forked_command.leave_bundle)
    assert done.code == 0, done.errors
    (written,) = (path for path in (working / "out").iterdir() if path.name.endswith("_seg.nii.gz"))
    assert nib.load(written).shape == nib.load(image).shape


def unpacked(tmp_path: Path, *words: str) -> Path:
    assert main(["export", "zip", "--filepath", str(tmp_path / "B.zip"), *words]) == 0
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "B"


def test_all_configs_of_the_zip_are_for_the_dataset_of_the_shipped_model(shipped_weights, tmp_path) -> None:
    """Otherwise MONAI Label would train a network that differs from that of inference.json."""
    configs = unpacked(tmp_path) / "configs"
    train, inference, metadata = (
        ConfigParser.load_config_file(configs / f"{n}.json") for n in ("train", "inference", "metadata")
    )
    for key in ("label_names", "spacing", "roi_size", "in_channels", "dataset_name"):
        assert train[key] == inference[key], key
    assert train["label_names"] == ["background", "anterior", "posterior"]
    assert metadata == ConfigParser.load_config_file(ROOT / "configs/metadata.json")


def test_the_zip_of_another_dataset_describes_that_dataset_in_every_json(tmp_path) -> None:
    names = ["background", "large organ", "small organ", "vessel"]
    torch.save(
        ResidualUNet(1, 4, widths=(2, 2, 2, 2), stem_stride=1, norm="instance").state_dict(), tmp_path / "model.pt"
    )
    files = [str(ROOT / "configs/inference.yaml"), str(ROOT / "configs/datasets/demo.yaml")]
    words = [
        "--config_file",
        str(files),
        "--ckpt_file",
        str(tmp_path / "model.pt"),
        "--widths",
        "[2,2,2,2]",
        "--norm",
        "instance",
    ]
    configs = unpacked(tmp_path, *words) / "configs"
    assert (configs / "evaluate.json").is_file()
    for name in ("train", "inference"):
        config = ConfigParser.load_config_file(configs / f"{name}.json")
        assert config["label_names"] == names and config["widths"] == [2, 2, 2, 2]
        parser = ConfigParser(config)
        parser["bundle_root"] = str(tmp_path / "B")
        parser.get_parsed_content("network_def").load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    metadata = ConfigParser.load_config_file(configs / "metadata.json")
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == dict(zip("0123", names, strict=True))
    assert "eval_metrics" not in metadata, "they were measured with other weights"
    told = " ".join(metadata[key] for key in ("description", "data_source", "image_classes", "label_classes"))
    assert "demo" in told and "vessel" in told and "hippocampus" not in told.lower()
    licence = (configs.parent / "docs/data_license.txt").read_text()
    assert "demo" in licence and "not stated" in licence and "hippocampus" not in licence.lower()


def test_weights_of_another_dataset_are_not_zipped(tmp_path, capsys) -> None:
    torch.save(VNet(1, 4, norm="instance").state_dict(), tmp_path / "model.pt")
    assert (
        main(["export", "zip", "--filepath", str(tmp_path / "B.zip"), "--ckpt_file", str(tmp_path / "model.pt")]) == 2
    )
    assert "model.pt" in capsys.readouterr().err
    assert not (tmp_path / "B.zip").exists()


def test_monai_loads_the_network_of_the_unpacked_zip_by_the_bundles_name(
    shipped_weights, tmp_path, monkeypatch
) -> None:
    unpacked(tmp_path)
    network = ResidualUNet(1, 3, (16, 32, 64, 128), stem_stride=1, norm="batch")
    network.load_state_dict(torch.load(shipped_weights, weights_only=True))
    monkeypatch.syspath_prepend(str(ROOT))
    loaded = monai.bundle.load(
        name="B", bundle_dir=str(tmp_path), source="github", workflow_type="inference", device="cpu"
    )
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), network.eval()(image))


def test_the_network_that_a_weights_file_records_is_that_of_the_zip_and_of_torchscript(tmp_path) -> None:
    network = ResidualUNet(1, 3, widths=(4, 8, 8, 8), norm="batch").eval()
    save_weights(network, tmp_path / "model.pt")
    words = ["--ckpt_file", str(tmp_path / "model.pt")]
    inference = ConfigParser.load_config_file(unpacked(tmp_path, *words) / "configs/inference.json")
    assert inference["network_def"]["_target_"].endswith("ResidualUNet")
    assert list(inference["network_def"]["widths"]) == [4, 8, 8, 8]
    assert main(["export", "ts", *words]) == 0
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image))


def test_each_json_has_the_values_of_its_yaml(shipped_weights, tmp_path) -> None:
    configs = unpacked(tmp_path) / "configs"
    evaluate = ConfigParser.load_config_file(ROOT / "configs/evaluate.yaml")
    assert ConfigParser.load_config_file(configs / "evaluate.json") == evaluate
    dataset = ConfigParser.load_config_file(ROOT / "configs/datasets/hippocampus.yaml")
    for name, changed in (("train", {"cases", "ckpt_dir"}), ("inference", {"dataset_dir"})):
        expected = ConfigParser.load_config_file(ROOT / f"configs/{name}.yaml") | dataset
        written = ConfigParser.load_config_file(configs / f"{name}.json")
        assert written.keys() == expected.keys()
        assert {key for key in expected if written[key] != expected[key]} == changed


def front_matter(text: str) -> dict:
    _, block, _ = text.split("---\n", 2)
    return yaml.safe_load(block)


def test_a_zip_for_the_hub_has_the_licence_of_the_weights_at_the_top_of_its_readme(tmp_path, monkeypatch) -> None:
    folder = unpacked(tmp_path, "--for", "hub")
    text = (folder / "README.md").read_text()
    assert front_matter(text)["license"] == "cc-by-sa-4.0" and front_matter(text)["library_name"] == "monai"
    measured = json.loads((ROOT / "configs/metadata.json").read_text())["eval_metrics"]
    assert f"{measured['mean_dice']:.4f}" in text
    assert (ROOT / "README.md").read_text() in text
    assert (folder / "docs/README.md").read_text() == (ROOT / "docs/README.md").read_text()


def test_a_zip_for_the_zoo_describes_the_model_above_the_index_of_pages(tmp_path) -> None:
    folder = unpacked(tmp_path, "--for", "zoo")
    text = (folder / "docs/README.md").read_text()
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    headings = [heading.strip("*") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    assert headings[0] == metadata["name"]
    for heading in ("Model Description", "Data", "Preprocessing", "Performance", "System Configuration", "References"):
        assert heading in headings
    assert headings.index("Pages") > headings.index("References") and "](inference.md)" in text
    assert not (folder / "large_files.yml").exists()


def test_other_weights_need_a_licence_and_large_ones_an_address(tmp_path, monkeypatch, capsys) -> None:
    save_weights(
        ResidualUNet(1, 4, widths=(4, 4, 4, 4), norm="instance"),
        tmp_path / "model.pt",
        run={"started": "2020", "ended": "2021", "steps": 77, "device": {"type": "cpu", "name": "x", "processes": 1}},
    )
    files = [str(ROOT / "configs/inference.yaml"), str(ROOT / "configs/datasets/demo.yaml")]
    words = ["export", "zip", "--config_file", str(files), "--ckpt_file", str(tmp_path / "model.pt")]
    words += ["--filepath", str(tmp_path / "B.zip"), "--for", "zoo"]
    assert main(words) == 2 and "--license" in capsys.readouterr().err
    words += ["--license", "MIT"]
    monkeypatch.setattr("scripts.export.package.LARGEST_FILE", 1000)
    assert main(words) == 2 and "--weights_url" in capsys.readouterr().err
    assert main([*words, "--weights_url", "https://example.org/model.pt"]) == 0
    with zipfile.ZipFile(tmp_path / "B.zip") as archive:
        assert "B/models/model.pt" not in archive.namelist()
        (entry,) = yaml.safe_load(archive.read("B/large_files.yml"))["large_files"]
        card, licence = (archive.read(f"B/docs/{name}").decode() for name in ("README.md", "data_license.txt"))
    digest = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    assert (entry["path"], entry["url"], entry["hash_val"]) == (
        *("models/model.pt", "https://example.org/model.pt"),
        digest,
    )
    assert "77 steps" in card and "vessel" in card and "hippocampus" not in card.split("## Pages")[0].lower()
    assert "MIT" in licence and "demo" in licence
