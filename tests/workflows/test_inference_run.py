# SPDX-License-Identifier: Apache-2.0
"""`run` with configs/inference.yaml: grids, formats, model files, failures and tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
import torch

from scripts.errors import root_user_error
from scripts.images.read import read_volume
from scripts.networks.residual_unet import ResidualUNet
from scripts.report.page import write_report
from scripts.report.record import read_record
from tests.volume_files import LPS_TO_RAS, affine, dicom_slices, oblique, save, stored_as, volume, write_dicom

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (12, 14, 10)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.pt` and the same network as `model.ts`; what it says depends on the image."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = ResidualUNet(1, 4, widths=(4, 4, 4, 4), stem_stride=1, norm="instance").eval()
    torch.save(network.state_dict(), folder / "model.pt")
    torch.jit.trace(network, torch.zeros(1, 1, 32, 16, 16)).save(folder / "model.ts")
    return folder


@pytest.fixture
def infer(make_workflow, models: Path, tmp_path: Path):
    """Run inference on a path or a list; returns the output folder."""

    def run(source, name: str = "out", **overrides) -> Path:
        make_workflow(
            *("inference.yaml", "datasets/demo.yaml"),
            workflow_type="infer",
            **{
                "bundle_root": str(ROOT),
                "dataset_dir": source if isinstance(source, list) else str(source),
                "ckpt_dir": str(models),
                "output_dir": str(tmp_path / name),
                "widths": [4, 4, 4, 4],
                "norm": "instance",
                "roi_size": [32, 16, 16],
                "spacing": [3.0, 3.0, 4.0],
                "device": "cpu",
                **overrides,
            },
        ).run()
        return tmp_path / name

    return run


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "scans/scan.nii.gz", volume(SHAPE), oblique((2.0, 3.0, 4.5)))


def read(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def grids_of(path: Path) -> list[np.ndarray]:
    """Origin, spacing and direction as one affine (RAS), as nibabel and as ITK read them."""
    image = itk.imread(str(path))
    direction = itk.array_from_matrix(image.GetDirection())
    lps = np.eye(4)
    lps[:3, :3] = direction @ np.diag(np.asarray(image.GetSpacing()))
    lps[:3, 3] = np.asarray(image.GetOrigin())
    return [nibabel.load(path).affine, LPS_TO_RAS @ lps]


def mistake(call) -> str:
    with pytest.raises(Exception) as caught:
        call()
    found = root_user_error(caught.value)
    assert found is not None, caught.value
    return str(found)


@pytest.mark.parametrize("kind", ["rotated nifti", "dicom"])
def test_nibabel_and_itk_read_the_output_on_the_grid_of_the_input(kind, infer, tmp_path) -> None:
    matrix = oblique((1.1, 1.7, 2.6))
    if kind == "dicom":
        source = write_dicom(tmp_path / "series", dicom_slices(volume(SHAPE), matrix))
    else:
        source = save(tmp_path / "series.nii.gz", volume(SHAPE), matrix)
    output = infer(source) / "series_seg.nii.gz"
    assert read(output).shape == SHAPE
    for grid in grids_of(output):
        np.testing.assert_allclose(grid, matrix, atol=1e-3)


def test_a_sheared_grid_comes_back_too(infer, tmp_path) -> None:
    matrix = affine((2.0, 3.0, 4.0))
    matrix[0, 2] = 1.0
    output = infer(save(tmp_path / "a.nii.gz", volume(SHAPE), matrix)) / "a_seg.nii.gz"
    np.testing.assert_allclose(nibabel.load(output).affine, matrix, atol=1e-4)


def test_what_fails_is_named_and_the_others_go_on(infer, tmp_path) -> None:
    scans = tmp_path / "scans"
    for number in range(20):
        save(scans / f"case_{number}.nii.gz", volume(SHAPE), affine())
    truncated = scans / "case_2.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:300])
    save(scans / "case_4.nii.gz", np.stack([volume(SHAPE)] * 2, axis=-1), affine())
    told = mistake(lambda: infer(scans))
    assert told.startswith("2 of 20 cases failed (case_2, case_4)")
    whole = {f"case_{number}" for number in range(20)} - {"case_2", "case_4"}
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"{name}_seg.nii.gz" for name in whole}
    failed = rows(tmp_path / "out/failed.csv")
    assert [row["case"] for row in failed] == ["case_2", "case_4"]
    assert "case_2.nii.gz" in failed[0]["what"] and "case_4.nii.gz" in failed[1]["what"]
    assert {row["case"] for row in rows(tmp_path / "out/volumes.csv")} == whole
    # and once they are mended, nothing says that they failed
    for name in ("case_2", "case_4"):
        save(scans / f"{name}.nii.gz", volume(SHAPE), affine())
    assert not (infer(scans) / "failed.csv").exists()


def test_the_run_and_the_evaluator_for_readers_of_bundles_say_the_same(infer, scan, make_workflow, models, tmp_path):
    mine = read(infer(scan) / "scan_seg.nii.gz")
    workflow = make_workflow(
        *("inference.yaml", "datasets/demo.yaml"),
        workflow_type="infer",
        dataset_dir=str(scan),
        ckpt_dir=str(models),
        output_dir=str(tmp_path / "stock"),
        widths=[4, 4, 4, 4],
        norm="instance",
        roi_size=[32, 16, 16],
        spacing=[3.0, 3.0, 4.0],
    )
    workflow.parser.get_parsed_content("evaluator").run()
    theirs = read(tmp_path / "stock/scan_seg.nii.gz")
    assert len(np.unique(theirs)) > 1
    assert np.mean(mine == theirs) > 0.999  # 32 bits of a coordinate here, 64 there


def test_a_torchscript_file_says_what_its_weights_say(infer, scan) -> None:
    assert np.array_equal(
        read(infer(scan, "pt") / "scan_seg.nii.gz"),
        read(infer(scan, "ts", checkpoint="model.ts") / "scan_seg.nii.gz"),
    )


def test_volumes_in_millilitres_and_names_stand_beside_the_labels(infer, scan) -> None:
    out = infer(scan, label_values=[0, 10, 20, 300])
    label = read(out / "scan_seg.nii.gz")
    assert label.dtype == np.int16
    for row, (value, name) in zip(
        rows(out / "volumes.csv"), [(10, "large organ"), (20, "small organ"), (300, "vessel")], strict=True
    ):
        count = int((label == value).sum())
        assert (row["case"], row["structure"], row["value"], row["voxels"]) == ("scan", name, str(value), str(count))
        assert float(row["volume_ml"]) == pytest.approx(count * 2.0 * 3.0 * 4.5 / 1000, abs=6e-4)
    sidecar = json.loads((out / "scan_seg.json").read_text())
    assert sidecar["labels"] == {"0": "background", "10": "large organ", "20": "small organ", "300": "vessel"}
    assert set(np.unique(label)) <= {0, 10, 20, 300} and len(np.unique(label)) > 1


def test_probability_confidence_and_uncertainty_belong_together(infer, scan) -> None:
    out = infer(scan, save_probabilities=True, save_confidence=True, save_uncertainty=True, mirror_axes=[0, 1, 2])
    probabilities = read(out / "scan_probabilities.nii.gz")
    assert probabilities.shape == (*SHAPE, 4)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), read(out / "scan_seg.nii.gz"))
    np.testing.assert_array_equal(probabilities.max(axis=-1), read(out / "scan_confidence.nii.gz"))
    entropy = -(probabilities * np.log(probabilities)).sum(axis=-1) / np.log(4)
    np.testing.assert_allclose(read(out / "scan_uncertainty.nii.gz"), entropy, atol=1e-5)
    for path in out.glob("*.nii.gz"):
        np.testing.assert_allclose(nibabel.load(path).affine, oblique((2.0, 3.0, 4.5)), atol=1e-4)
    assert not [path.name for path in out.iterdir() if path.name.startswith((".", "tmp"))], "nothing else is left"


def test_the_output_can_have_the_format_of_the_input(infer, tmp_path) -> None:
    matrix = oblique((2.0, 3.0, 4.5))
    for name in ("a.nii.gz", "b.nrrd", "c.mhd", "d.nii"):
        save(tmp_path / "scans" / name, volume(SHAPE), matrix)
    out = infer(tmp_path / "scans", output_format="input")
    assert {path.name for path in out.glob("*_seg.[!j]*")} == {
        "a_seg.nii.gz", "b_seg.nrrd", "c_seg.mha", "d_seg.nii",
    }  # fmt: skip
    reference = itk.imread(str(out / "a_seg.nii.gz"))
    for name in ("b_seg.nrrd", "c_seg.mha", "d_seg.nii"):
        image = itk.imread(str(out / name))
        np.testing.assert_array_equal(itk.array_from_image(image), itk.array_from_image(reference))
        np.testing.assert_allclose(np.asarray(image.GetOrigin()), np.asarray(reference.GetOrigin()), atol=1e-3)
        np.testing.assert_allclose(
            itk.array_from_matrix(image.GetDirection()), itk.array_from_matrix(reference.GetDirection()), atol=1e-4
        )


def test_segmentations_for_3d_slicer_have_the_voxels_of_nifti(infer, scan) -> None:
    segmentation = read_volume(infer(scan, "slicer", output_format="seg_nrrd") / "scan_seg.seg.nrrd")[1][0]
    assert np.array_equal(segmentation, read(infer(scan) / "scan_seg.nii.gz"))


def test_dicom_seg_is_written_of_a_series_and_refused_for_another_image(infer, tmp_path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="requirements-dicom.txt is not installed")
    save(tmp_path / "scans/b.nrrd", volume(SHAPE), affine())
    write_dicom(tmp_path / "scans/a", dicom_slices(*stored_as(volume(SHAPE), oblique((2.0, 3.0, 4.5)), "LPS")))
    assert "b" in mistake(lambda: infer(tmp_path / "scans", output_format="dicom_seg"))
    assert [row["case"] for row in rows(tmp_path / "out/failed.csv")] == ["b"]
    found = highdicom.seg.segread(tmp_path / "out/a_seg.dcm").get_volume(combine_segments=True).array
    expected = read(infer(tmp_path / "scans/a", "nifti") / "a_seg.nii.gz")
    numbers, counts = np.unique(expected[expected > 0], return_counts=True)
    assert [(found == number).sum() for number in numbers] == counts.tolist() and counts.sum() == (found > 0).sum()


def test_the_largest_part_of_a_structure_can_be_kept(infer, scan) -> None:
    from scipy import ndimage

    label = read(infer(scan) / "scan_seg.nii.gz")
    (name, value), *_ = [
        (name, v)
        for v, name in enumerate(["large organ", "small organ", "vessel"], start=1)
        if ndimage.label(label == v, np.ones((3, 3, 3)))[1] > 1
    ]
    kept = read(infer(scan, "kept", largest_component=[name]) / "scan_seg.nii.gz")
    parts, count = ndimage.label(label == value, np.ones((3, 3, 3)))
    sizes = [int((parts == part).sum()) for part in range(1, count + 1)]
    assert int((kept == value).sum()) == max(sizes)
    assert np.array_equal(kept[label != value], label[label != value])


def test_switches_are_the_same_as_words_of_a_command_line(infer, scan) -> None:
    """MONAI's command line hands `--save_confidence false` on as a text, which Python takes for true."""
    out = infer(scan, save_confidence="false", save_uncertainty="true", largest_component="true")
    kept = read(infer(scan, "kept", largest_component=True) / "scan_seg.nii.gz")
    assert not (out / "scan_confidence.nii.gz").exists() and (out / "scan_uncertainty.nii.gz").exists()
    assert np.array_equal(read(out / "scan_seg.nii.gz"), kept)


@pytest.mark.parametrize("form", ["python list", "txt", "json"])
def test_a_list_of_images_is_an_input(form, infer, tmp_path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"scans/{name}.nii.gz", volume(SHAPE), affine())
    source = [str(tmp_path / "scans/c.nii.gz"), str(tmp_path / "scans/a.nii.gz")]
    if form != "python list":
        source = tmp_path / f"list.{form}"
        names = ["scans/c.nii.gz", "scans/a.nii.gz"]
        source.write_text(json.dumps(names) if form == "json" else "# mine\n\n" + "\n".join(names))
    assert {path.name for path in infer(source).glob("*.nii.gz")} == {"a_seg.nii.gz", "c_seg.nii.gz"}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"output_format": "dicom"}, "output_format"),
        ({"largest_component": ["liver"]}, "largest_component"),
        ({"mirror_axes": [3]}, "mirror_axes"),
        ({"checkpoint": "model.h5"}, "model.h5"),
        ({"checkpoint": "model.ts", "label_names": ["background", "liver"]}, "label_names"),
        ({"checkpoint": "model.ts", "in_channels": 2}, "in_channels"),
        ({"label_values": [0, 1]}, "label_values"),
    ],
)
def test_a_wrong_option_is_named_before_any_case(overrides, named, infer, scan, tmp_path) -> None:
    assert named in mistake(lambda: infer(scan, **overrides))
    assert not (tmp_path / "out").exists()


def test_the_report_of_an_inference_says_which_model_was_used(infer, scan, models) -> None:
    out = infer(scan)
    page = write_report(out).read_text(encoding="utf-8")
    assert "model.pt" in page and "Images</dt><dd>1" in page and "3.0 x 3.0 x 4.0" in page
    assert read_record(out)["facts"]["checkpoint"] == "model.pt"
