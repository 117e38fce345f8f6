# SPDX-License-Identifier: Apache-2.0
"""The names in 3D Slicer's segmentations give classes their names; files that contradict each other are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from scripts.data.spec import CaseLists, DatasetSpec
from scripts.dataset_setup.check_data import check_dataset
from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request
from scripts.errors import UserError
from scripts.images.write import write_volume
from scripts.training.limits import check_headers_before_training
from tests.scan_folder import MACHINE, SHAPE, refusal, volume

HEAD = """NRRD0004
type: unsigned char
dimension: 3
space: left-posterior-superior
sizes: {0} {1} {2}
space directions: (-1.5,0,0) (0,-1.5,0) (0,0,2)
kinds: domain domain domain
endian: little
encoding: gzip
space origin: (0,0,0)
"""


def segmentation(path: Path, names: dict[int, str]) -> str:
    """A .seg.nrrd file in which each value is a box."""
    array = np.zeros(SHAPE, np.uint8)
    head = HEAD.format(*SHAPE)
    for number, (value, name) in enumerate(names.items()):
        array[2 + 5 * number : 6 + 5 * number, 4:12, 4:12] = value
        fields = {"ID": f"Segment_{number}", "Name": name, "LabelValue": value, "Layer": 0}
        head += "".join(f"Segment{number}_{key}:={text}\n" for key, text in fields.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((head + "\n").encode() + gzip.compress(array.tobytes(order="F")))
    return str(path)


def case(folder: Path, number: int, names: dict[int, str]) -> dict[str, str]:
    volume(folder / f"p{number}.nii.gz", seed=number)
    label = segmentation(folder / f"p{number}.seg.nrrd", names)
    return {"image": str(folder / f"p{number}.nii.gz"), "label": label, "case": f"p{number}"}


def summary(folder: Path, **options) -> str:
    shown: list[str] = []
    new_dataset(Request(folder, "mine", test_cases=1, dry_run=True, **options), MACHINE, shown.append)
    return shown[0]


def test_names_that_agree_become_those_of_the_classes(tmp_path) -> None:
    for number, names in enumerate(({1: "Liver", 2: "Left Kidney"}, {2: "left_kidney", 1: "liver"}, {1: "Liver"})):
        case(tmp_path, number, names)
    text = summary(tmp_path)
    assert "liver" in text.lower() and "kidney" in text.lower() and "structure" not in text
    assert "  organ" in summary(tmp_path, label_names=("background", "organ", "other"))


def test_names_in_the_header_of_nifti_labels_become_those_of_the_classes(tmp_path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[2:6, 4:12, 4:12], array[7:11, 4:12, 4:12] = 1, 2
    for number in range(3):
        volume(tmp_path / f"images/p{number}.nii.gz", seed=number)
        label = tmp_path / f"labels/p{number}.nii.gz"
        write_volume(label, array, np.diag([1.5, 1.5, 2.0, 1.0]), names={1: "liver", 2: "kidney_left"})
    text = summary(tmp_path)
    assert "liver" in text and "kidney" in text and "structure" not in text


@pytest.mark.parametrize(
    "second",
    [{1: "Spleen", 2: "Liver"}, {1: "Spleen"}, {3: "Liver"}],
    ids=["exchanged", "another name", "another value"],
)
def test_names_that_contradict_each_other_are_refused_everywhere(second, tmp_path) -> None:
    cases = [case(tmp_path, 0, {1: "Liver", 2: "Spleen"} if len(second) > 1 else {1: "Liver"})]
    cases += [case(tmp_path, 1, second)]
    message = refusal(summary, tmp_path)
    assert "p0.seg.nrrd" in message and "p1.seg.nrrd" in message
    names = ["background", "one", "two", "three"]  # renamed freely
    dataset = DatasetSpec(tmp_path, label_names=names, spacing=(1.5, 1.5, 2.0), roi_size=(16, 16, 16))
    found = check_dataset(CaseLists(labelled=cases), dataset, lambda items, _: items)
    assert ("segment names", "p1") in {(finding.kind.title, finding.case) for finding in found}
    with pytest.raises(UserError, match=r"p1\.seg\.nrrd"):
        check_headers_before_training(dataset, CaseLists(labelled=cases))


def test_a_name_that_the_yaml_or_dataset_json_gives_to_another_value_is_refused(tmp_path) -> None:
    cases = [case(tmp_path, number, {1: "Liver", 2: "Spleen"}) for number in range(2)]
    dataset = DatasetSpec(tmp_path, label_names=["background", "spleen", "liver"], spacing=(1.5, 1.5, 2.0))
    with pytest.raises(UserError, match=r"p0\.seg\.nrrd .*1 for Liver"):
        check_headers_before_training(dataset, CaseLists(labelled=cases))
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "spleen", "2": "liver"}}')
    assert "dataset.json" in refusal(summary, tmp_path)
