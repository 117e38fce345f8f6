# SPDX-License-Identifier: Apache-2.0
"""`Segmenter.from_bundle(...).segment(image)`: files and images in memory give the same segmentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor

from scripts.data.weights import save_weights
from scripts.errors import UserError
from scripts.inference import Segmenter
from scripts.networks.vnet import VNet
from tests.volume_files import oblique, save

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Random weights whose last layer prefers no class, so that any image gets several."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = VNet(1, 3, base_filters=4, norm="instance")
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)][-1]
    with torch.no_grad():
        last.bias.zero_()
        last.weight -= last.weight.mean(dim=1, keepdim=True)
    save_weights(network, folder / "model.pt")
    return Segmenter.from_bundle(ROOT, ckpt_dir=folder, **SMALL)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, Path]:
    """Voxels and affine of an oblique volume of unequal sides and voxels, and the file."""
    voxels = np.random.default_rng(0).normal(size=(21, 26, 17)).astype(np.float32)
    voxels[6:14, 8:18, 5:12] += 3
    matrix = oblique((1.3, 0.9, 1.7))
    return voxels, matrix, save(tmp_path_factory.mktemp("scan") / "scan.nii.gz", voxels, matrix)


def test_every_kind_of_image_gives_the_segmentation_of_its_file(segmenter, scan, tmp_path) -> None:
    voxels, matrix, file = scan
    expected = segmenter(str(file))
    assert len(np.unique(expected.classes)) > 1 and expected.classes.shape == voxels.shape
    nrrd = save(tmp_path / "scan.nrrd", voxels, matrix)
    kinds = {
        "path": segmenter.segment(file),
        "text": segmenter.segment(str(file)),
        "list": segmenter.segment([file]),
        "nibabel": segmenter.segment(nibabel.load(file)),
        "itk": segmenter.segment(itk.imread(str(nrrd))),
        "array": segmenter.segment(voxels, affine=matrix),
        "channel": segmenter.segment(voxels[None], affine=matrix.tolist()),
        "tensor": segmenter.segment(torch.from_numpy(voxels), affine=torch.from_numpy(matrix)),
        "MetaTensor": segmenter.segment(MetaTensor(voxels, affine=torch.from_numpy(matrix))),
    }
    for kind, result in kinds.items():
        np.testing.assert_allclose(result.affine, expected.affine, atol=1e-4, err_msg=kind)
        # The direction that ITK stores is rounded, so single voxels between two classes may differ.
        assert (result.classes != expected.classes).mean() <= (1e-3 if kind == "itk" else 0), kind
        assert result.label_names == ("background", "anterior", "posterior")
    assert kinds["array"].sums.confidence() == expected.sums.confidence()
    assert kinds["array"].image == "ndarray"


def test_channels_of_an_image_in_memory_are_those_of_its_files(scan, tmp_path) -> None:
    voxels, matrix, file = scan
    other = save(tmp_path / "other.nii.gz", voxels[::-1].copy(), matrix)
    torch.manual_seed(0)
    save_weights(VNet(2, 3, base_filters=2, norm="instance"), tmp_path / "model.pt")
    segmenter = Segmenter.from_bundle(ROOT, ckpt_dir=tmp_path, in_channels=2, **SMALL)
    expected = segmenter.segment([file, other]).classes
    stacked = np.stack([voxels, voxels[::-1]])
    assert len(np.unique(expected)) > 1
    for result in (
        segmenter.segment(stacked, affine=matrix),
        segmenter.segment(nibabel.Nifti1Image(np.moveaxis(stacked, 0, -1), matrix)),
    ):
        np.testing.assert_array_equal(result.classes, expected)
    image = itk.image_from_array(np.ascontiguousarray(stacked.transpose(3, 2, 1, 0)), is_vector=True)
    assert segmenter.segment(image).classes.shape == voxels.shape
    with pytest.raises(UserError, match="1 channel"):
        segmenter.segment(voxels, affine=matrix)


def test_settings_are_those_of_inference(scan) -> None:
    segmenter = Segmenter.from_bundle(ROOT, largest_component=True, save_uncertainty=True, **SMALL)
    assert segmenter.reduced == [1, 2]
    assert segmenter.segment(scan[2]).uncertainty is not None
    overlap = Segmenter.from_bundle(ROOT, **{"inferer::overlap": 0.25}, **SMALL).inferer.overlap
    assert overlap == 0.25


def test_a_dataset_names_its_model_and_a_zip_file_its_json(tmp_path) -> None:
    names = ["background", "bone"]
    for folder in ("configs", "outputs/models", "models"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs/inference.yaml").write_text((ROOT / "configs/inference.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"label_names": names, "roi_size": [16, 16, 16]}))
    save_weights(VNet(1, 2, base_filters=2), tmp_path / "outputs/models/model.pt")
    mine = Segmenter.from_bundle(tmp_path, tmp_path / "mine.yaml", **SMALL)
    assert mine.label_names == tuple(names) and list(mine.inferer.roi_size) == [16, 16, 16]
    content = yaml.safe_load((ROOT / "configs/inference.yaml").read_text())
    (tmp_path / "configs/inference.json").write_text(json.dumps({**content, "label_names": ["background", "a"]}))
    save_weights(VNet(1, 2, base_filters=2), tmp_path / "models/model.pt")
    assert Segmenter.from_bundle(tmp_path, **SMALL).label_names == ("background", "a")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bundle_root": ROOT / "docs"}, "configs/inference.yaml"),
        ({"dataset": "nobody.yaml"}, "nobody.yaml"),
        ({"spacings": [1, 1, 1]}, "spacings"),
        ({"checkpoint": "none.pt"}, "none.pt"),
        ({"label_names": ["background", "one"]}, "model.pt"),
    ],
)
def test_a_mistake_is_named_before_an_image_is_read(arguments, named) -> None:
    with pytest.raises(UserError) as caught:
        Segmenter.from_bundle(**{"bundle_root": ROOT, **SMALL, **arguments})
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((4, 4, 4)), "affine"),
        ((np.zeros((4, 4)), np.eye(4)), "(4, 4)"),
        ((np.zeros((4, 4, 4)), np.eye(3)), "(3, 3)"),
        ((np.zeros((4, 4, 4)), np.zeros((4, 4))), "invertible"),
        ((np.full((4, 4, 4), np.nan), np.eye(4)), "NaN"),
        ({"image": 1}, "dict"),
        ("nowhere.nii.gz", "nowhere.nii.gz"),
    ],
)
def test_an_image_that_is_none_is_named(image, named, segmenter) -> None:
    arguments = image if isinstance(image, tuple) else (image,)
    with pytest.raises(UserError) as caught:
        segmenter.segment(*arguments)
    assert named in str(caught.value)


def test_the_code_of_the_page_runs_as_it_is_printed(scan, tmp_path, monkeypatch, capsys) -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "scan.nii.gz", *scan[:2])
    save(tmp_path / "scan.nrrd", *scan[:2])
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace('from_bundle(".")', f'from_bundle("{ROOT}", device="cpu", precision="fp32")'), names)
    printed = capsys.readouterr().out.split()
    assert printed[::3][:2] == ["anterior", "posterior"] and printed[6] == "confidence"
    assert nibabel.load(tmp_path / "scan_seg.nii.gz").shape == scan[0].shape
