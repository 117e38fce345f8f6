# SPDX-License-Identifier: Apache-2.0
"""Folders in forms that users have: time series, single slices, scaled labels, files that are no images."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.dataset_setup.roles import Request, gather
from tests.scan_folder import refusal, volume
from tests.volume_files import affine, write_other_dicom

SHAPE = (20, 18, 12)


def write(path: Path, array: np.ndarray, time_unit: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine())
    image.header.set_xyzt_units("mm", time_unit)
    nib.save(image, path)


def cases(folder: Path, shape=SHAPE, points: int = 1, time_unit: str | None = None, number: int = 5) -> Path:
    """Labelled cases with one structure; images of several points have a fourth axis."""
    draw = np.random.default_rng(0)
    for n in range(number):
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(side // 4, max(side // 2, side // 4 + 1)) for side in shape)] = 1
        image = label + draw.normal(0, 0.2, shape)
        series = image if points == 1 else np.stack([image + k for k in range(points)], axis=-1)
        write(folder / f"imagesTr/a{n}.nii.gz", series.astype(np.float32), time_unit)
        write(folder / f"labelsTr/a{n}.nii.gz", label)
    return folder


@pytest.mark.parametrize(("unit", "points"), [("sec", 10), ("msec", 3), ("usec", 2)])
def test_a_time_series_is_called_one(tmp_path, run, unit, points) -> None:
    settings, _, text = run(cases(tmp_path / "data", points=points, time_unit=unit))
    assert settings["in_channels"] == points
    assert "time series" in text and f"{points} time points" in text


@pytest.mark.parametrize(("unit", "points"), [(None, 3), ("hz", 3), ("sec", 1)])
def test_channels_without_a_unit_of_time_are_channels(tmp_path, run, unit, points) -> None:
    assert "time series" not in run(cases(tmp_path / "data", points=points, time_unit=unit))[2]


def test_named_channels_are_no_time_series(tmp_path, run) -> None:
    folder = cases(tmp_path / "data", points=2, time_unit="sec")
    (folder / "dataset.json").write_text(
        '{"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "a"}}'
    )
    assert "time series" not in run(folder)[2]


@pytest.mark.parametrize("names", [("CT", "PET"), ("PET", "CT"), None])
def test_ct_beside_another_modality_is_clipped_and_the_other_gets_z_scores(tmp_path, run, names) -> None:
    draw, folder = np.random.default_rng(0), cases(tmp_path / "data")
    order = names or ("CT", "PET")
    for n in range(5):
        label = np.asarray(nib.load(folder / f"labelsTr/a{n}.nii.gz").dataobj)
        values = {"CT": 1000.0 * label - 1000, "PET": 5.0 + 3 * label}
        for channel, name in enumerate(order):
            noisy = values[name] + draw.normal(0, 1, SHAPE)
            write(folder / f"imagesTr/a{n}_{channel:04d}.nii.gz", noisy.astype(np.float32))
        (folder / f"imagesTr/a{n}.nii.gz").unlink()
    if names:
        (folder / "dataset.json").write_text(json.dumps({"channel_names": dict(enumerate(names)), "labels": {"a": 1}}))
    settings, _, text = run(folder)
    assert "CT and other" in text and settings["in_channels"] == 2
    intensity = ConfigParser({"it": settings["intensity"]}).get_parsed_content("it")
    both = np.stack([-1000 + 2000 * np.linspace(0, 1, 1000), np.linspace(5, 8, 1000)]).astype(np.float32)
    image = torch.from_numpy(both if order[0] == "CT" else both[::-1].copy()).reshape(2, 10, 10, 10)
    result = intensity({"image": image})
    assert set(result) == {"image"}
    ct, pet = result["image"] if order[0] == "CT" else result["image"].flip(0)
    assert ct.min() == -1 and ct.max() == 1
    assert abs(float(pet.mean())) < 0.01 and float(pet.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", [(40, 36, 1), (1, 40, 36)])
def test_single_slices_are_taken_as_in_training(tmp_path, run, shape) -> None:
    settings, found, _ = run(cases(tmp_path / "data", shape))
    assert len(found.labelled) == 4 and all(side >= 1 for side in settings["roi_size"])


def test_labels_that_are_cut_to_their_painted_part_are_counted(tmp_path, run) -> None:
    folder = cases(tmp_path / "data")
    expected, _, _ = run(cases(tmp_path / "whole"))
    for n in (1, 3):
        file = folder / f"labelsTr/a{n}.nii.gz"
        nib.save(nib.load(file).slicer[5:10, 4:9, 3:6], file)  # all painted
    settings, found, text = run(folder, name="cut")
    assert "2 labels cover a part" in text and len(found.labelled) == 4
    assert settings["label_names"] == expected["label_names"] and settings["roi_size"] == expected["roi_size"]


@pytest.mark.parametrize(("slope", "value"), [(0.988, "0.988"), (1.01, "1.01")])
def test_values_that_a_slope_makes_are_refused_with_the_way_out(tmp_path, run, slope, value) -> None:
    folder = cases(tmp_path / "data")
    label = nib.load(folder / "labelsTr/a0.nii.gz")
    scaled = nib.Nifti1Image(np.asarray(label.dataobj, np.float32) * slope, label.affine)
    nib.save(scaled, folder / "labelsTr/a0.nii.gz")
    message = refusal(run, folder)
    assert value in message and "a0.nii.gz" in message and "slope" in message


@pytest.mark.parametrize("inside", [True, False])
def test_files_that_are_passed_over_are_counted_once_for_each_folder(tmp_path, run, inside) -> None:
    folder = cases(tmp_path / "data")
    more = (folder if inside else tmp_path) / "more"
    write(more / "b.nii.gz", np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
    (more / "c.mnc").touch()
    assert run(folder, unlabelled=more)[2].count("1 .mnc") == 1


def test_dicom_structures_among_the_files_are_named(tmp_path, run) -> None:
    folder = cases(tmp_path / "data")
    write_other_dicom(folder / "labelsTr")
    text = run(folder)[2]
    assert "2 of them" in text and "RTSTRUCT" in text


@pytest.mark.parametrize(
    ("name", "label"),
    [("images/c{}_{}.nii.gz", "labels/c{}.nii.gz"), ("c{0}/c{0}_{1}.nii.gz", "c{0}/c{0}_seg.nii.gz")],
)
def test_images_that_channels_leave_out_are_counted_and_lost_cases_named(tmp_path, name, label) -> None:
    """The images of c4 end in T1w and FLAIR3D."""
    for n in range(5):
        for channel in ("T1w", "FLAIR3D") if n == 4 else ("t1", "flair"):
            volume(tmp_path / name.format(n, channel))
        if n < 4:
            volume(tmp_path / label.format(n), classes=(1,))
    lost = ", ".join(name.format(4, channel) for channel in ("FLAIR3D", "T1w"))
    (note,) = gather(Request(tmp_path, "mine", channels=("t1", "flair")))[1].notes
    assert note.startswith("2 ") and lost in note and "c1" not in note
    volume(tmp_path / name.format(1, "t2"))
    (note,) = gather(Request(tmp_path, "mine", channels=("t1", "flair")))[1].notes
    assert note.startswith("3 ") and f"2 of them belong to no case: {lost}" in note


def test_channels_that_leave_nothing_out_are_not_mentioned(tmp_path) -> None:
    for channel in ("t1", "flair"):
        volume(tmp_path / f"c0_{channel}.nii.gz")
    volume(tmp_path / "c0_seg.nii.gz", classes=(1,))
    assert not gather(Request(tmp_path, "mine", channels=("t1", "flair")))[1].notes
