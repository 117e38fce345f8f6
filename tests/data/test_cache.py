# SPDX-License-Identifier: Apache-2.0
"""Cached volumes: where they are kept, and when a file on disk is not used again."""

from __future__ import annotations

import os
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import ClassesToIndicesd, Compose, Lambdad, LoadImaged, ShiftIntensityd

from scripts.data.cache import (
    MEMORY_SHARE,
    DiskCacheDataset,
    VolumeCache,
    _fingerprint,
    cached_dataset,
    prepared_item,
    resampled_bytes,
)
from scripts.data.patches import RandPatchd
from scripts.data.spec import DatasetSpec
from scripts.data.transforms import LabelsToClassesd
from scripts.errors import UserError
from tests.volume_files import save

SHAPE = (12, 10, 8)


@pytest.fixture
def case(tmp_path) -> dict[str, str]:
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return {"image": str(save(tmp_path / "a.nii.gz", voxels, np.diag([1.0, 2.0, 3.0, 1.0]))), "case": "a"}


@pytest.fixture
def memory(monkeypatch):
    def have(available: int) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))

    return have


def pipeline(offset=0.0, prob=0.5) -> Compose:
    fixed = [LoadImaged("image", ensure_channel_first=True), ShiftIntensityd("image", offset)]
    return Compose([*fixed, RandPatchd("image", (6, 6, 6), mode="bilinear", prob=prob, rotate=0.3)])


def visit(dataset, seed=3) -> torch.Tensor:
    dataset.transform.set_random_state(seed)
    return dataset[0]["image"]


DATASET = DatasetSpec("", spacing=[1.0, 2.0, 3.0])
NEED = 4 * int(np.prod(SHAPE))


def choose(cache: str, cases: list, dataset: DatasetSpec = DATASET) -> bool:
    return VolumeCache(cache, "folder", dataset).takes_memory(cases)


def test_volumes_that_do_not_fit_are_refused_if_memory_is_wanted(case, memory) -> None:
    memory(NEED)
    assert choose("memory", [case])
    memory(NEED - 1)
    with pytest.raises(UserError, match="--cache disk"):
        choose("memory", [case])
    assert not choose("disk", [])


def test_auto_takes_the_disk_where_memory_gets_short_and_says_so(case, memory, caplog) -> None:
    memory(round(NEED / MEMORY_SHARE) + 1)
    assert choose("auto", [case])
    memory(round(NEED / MEMORY_SHARE) - 1)
    caplog.clear()
    with caplog.at_level("INFO", logger="cache"):
        assert not choose("auto", [case])
    assert len(caplog.records) == 1 and "1 resampled" in caplog.text and "folder" in caplog.text
    assert choose("auto", [case], DatasetSpec("", spacing=[2.0, 4.0, 6.0]))


@pytest.mark.parametrize("damaged", [1, 3])
def test_an_error_while_volumes_are_loaded_leaves_no_thread_behind(damaged) -> None:
    """A thread of MONAI's would go on inside torch while Python ends, which aborts with code 134."""
    computed = []

    def prepare(index):
        computed.append((index, threading.current_thread()))
        if index == damaged:
            raise ValueError(f"case {index} is damaged")
        return index

    cases = [{"image": index} for index in range(12)]
    with pytest.raises(RuntimeError) as caught:
        cached_dataset(cases, Compose([Lambdad("image", prepare)]), SimpleNamespace(takes_memory=lambda cases: True))
    assert f"case {damaged} is damaged" in str(caught.value.__cause__)
    assert computed == [(index, threading.current_thread()) for index in range(damaged + 1)]


def test_the_datasets_of_a_run_share_the_memory(case, memory) -> None:
    memory(round(3 * NEED / MEMORY_SHARE) + 1)
    cache = VolumeCache("auto", "folder", DATASET)
    assert [cache.takes_memory([case] * cases) for cases in (2, 2, 1)] == [True, False, True]


def test_labels_and_the_ranks_of_a_machine_count(case, memory, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    labelled = {**case, "label": case["image"]}
    need = 2 * 5 * int(np.prod(SHAPE))
    memory(need)
    assert choose("memory", [labelled])
    memory(need - 1)
    with pytest.raises(UserError):
        choose("memory", [labelled])


def test_both_caches_give_the_same_patches(case, tmp_path) -> None:
    in_memory, on_disk = (
        cached_dataset([case], pipeline(), VolumeCache(cache, tmp_path / "cache", DATASET))
        for cache in ("memory", "disk")
    )
    assert isinstance(in_memory, CacheDataset) and isinstance(on_disk, DiskCacheDataset)
    for seed in (1, 2, 3, 1):
        assert torch.equal(visit(in_memory, seed), visit(on_disk, seed))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_transforms_inside_of_a_compose_are_cached_too(kind, case, tmp_path) -> None:
    inner = Compose([ShiftIntensityd("image", 100.0), Compose([ShiftIntensityd("image", 1000.0)])])
    load, *others = pipeline().transforms
    dataset = cached_dataset([case], Compose([load, inner, *others]), VolumeCache(kind, tmp_path / "cache", DATASET))
    plain = LoadImaged("image", ensure_channel_first=True)(case)["image"]
    torch.testing.assert_close(torch.as_tensor(prepared_item(dataset, 0)["image"]), torch.as_tensor(plain) + 1100)


def test_a_file_is_computed_once_and_shared(case, tmp_path, monkeypatch) -> None:
    first = visit(DiskCacheDataset([case], pipeline(), tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    other = DiskCacheDataset([case], pipeline(), tmp_path / "cache")
    monkeypatch.setattr(other, "_pre_transform", lambda item: pytest.fail("it is there"))
    assert torch.equal(visit(other), first)
    assert list((tmp_path / "cache").iterdir()) == [file], "nothing temporary is left"


@pytest.mark.parametrize("change", ["content", "content with the old time", "time", "transform", "code"])
def test_what_changes_is_computed_anew(case, tmp_path, monkeypatch, change) -> None:
    folder = tmp_path / "cache"
    before = visit(DiskCacheDataset([case], pipeline(prob=0), folder))
    offset = 1.0 if change == "transform" else 0.0
    stat = os.stat(case["image"])
    if change.startswith("content"):
        save(tmp_path / "a.nii.gz", np.ones(SHAPE, np.float32), np.eye(4))
        if change != "content":
            os.utime(case["image"], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(case["image"], (1, 1))
    elif change == "code":
        monkeypatch.setattr("scripts.data.cache._code", lambda: "another")
    after = visit(DiskCacheDataset([case], pipeline(offset, prob=0), folder))
    assert len(list(folder.iterdir())) == 2
    assert torch.allclose(after, torch.ones_like(after) if change.startswith("content") else before + offset, atol=1e-5)


@pytest.mark.parametrize("damage", [b"", b"no tensor", None])
def test_a_damaged_file_is_replaced(case, tmp_path, damage, caplog) -> None:
    before = visit(DiskCacheDataset([case], pipeline(), tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert torch.equal(visit(DiskCacheDataset([case], pipeline(), tmp_path / "cache")), before)
    assert file.name in caplog.text


def test_names_of_cases_without_one_are_kept(case, tmp_path) -> None:
    dataset = DiskCacheDataset([{"image": case["image"]}], pipeline(), tmp_path / "cache")
    assert [dataset[0]["case"], dataset[0]["case"]] == ["a", "a"]


def test_the_slices_of_a_folder_count(tmp_path) -> None:
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(b"slice")
    before = _fingerprint({"image": str(tmp_path)})
    (tmp_path / "2.dcm").write_bytes(b"other")
    os.utime(tmp_path / "2.dcm", (1, 1))
    assert _fingerprint({"image": str(tmp_path)}) != before


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ("series#1.2.826.0.1", "series/2.dcm"),
        ("scan[1].img", "scan[1].hdr"),
        ("scan[1].mhd", "scan[1].raw"),
        ("a.MHD", "series/b.raw"),
    ],
)
def test_a_change_of_any_file_of_a_volume_counts(tmp_path, entry, other) -> None:
    (tmp_path / "series").mkdir()
    for name in {entry.partition("/")[0], other, "series/1.dcm"} - {"series#1.2.826.0.1"}:
        (tmp_path / name).touch()
    if entry.lower().endswith(".mhd"):
        (tmp_path / entry).write_text(f"ElementDataFile = {other}\n")
    before = _fingerprint({"image": str(tmp_path / entry)})
    (tmp_path / other).write_bytes(b"other")
    assert _fingerprint({"image": str(tmp_path / entry)}) != before


def test_a_transform_that_cannot_be_hashed_is_refused_with_what_to_do(case, tmp_path) -> None:
    with pytest.raises(UserError, match="--cache memory"):
        DiskCacheDataset([case], Compose([Lambdad("image", lambda x: x)]), tmp_path / "cache")


def test_a_training_is_the_same_with_either_cache(train, assert_same, tmp_path) -> None:
    """With validation, and with loader processes that compute the files at the same time."""
    options = {"val_interval": 2, "labelled_cases": 2}
    memory = train(name="memory", cache="memory", **options)
    assert_same(memory, train(name="disk", cache="disk", cache_dir=str(tmp_path / "c"), num_workers=2, **options))
    assert len(list((tmp_path / "c").iterdir())) == 7, "2 labelled, 4 unlabelled, 1 validation case"


ABSENT = pytest.mark.parametrize(
    ("voxels", "values", "absent"),
    [([0, 1, 1, 0], None, ["2"]), ([0, 255, 255, 7], [0, 255, 7], []), ([0, 0, 0, 0], [0, 3, 9], ["3", "9"])],
)


def of_three_classes(values) -> tuple[DatasetSpec, list]:
    dataset = DatasetSpec("", label_names=["air", "bone", "vessel"], label_values=values, spacing=[1.0, 1.0, 1.0])
    return dataset, [LabelsToClassesd("label", dataset), ClassesToIndicesd("label", num_classes=3)]


def named_values(caplog) -> list[str]:
    told = [record.getMessage() for record in caplog.records if record.name == "cache"]
    return [re.search(r"the value (\d+) of the class", sentence)[1] for sentence in told]


@ABSENT
def test_a_class_that_no_labelled_case_holds_is_named_when_volumes_are_loaded(voxels, values, absent, caplog) -> None:
    dataset, steps = of_three_classes(values)
    label = torch.tensor(voxels).reshape(1, 4, 1, 1)
    cache = SimpleNamespace(takes_memory=lambda cases: True, dataset=dataset)
    with caplog.at_level("WARNING", logger="cache"):
        cached_dataset([{"label": label}, {"label": torch.zeros_like(label)}], Compose(steps), cache)
    assert named_values(caplog) == absent


@ABSENT
def test_a_class_that_no_labelled_case_holds_is_named_when_all_are_on_disk(
    voxels, values, absent, caplog, tmp_path
) -> None:
    dataset, _ = of_three_classes(values)
    cases = []
    for number, content in enumerate((voxels, [0, 0, 0, 0])):
        array = np.array(content, np.uint8).reshape(4, 1, 1)
        path = str(save(tmp_path / f"{number}.nii.gz", array, np.eye(4)))
        cases.append({"image": path, "label": path, "case": str(number)})
    cases.append({"image": cases[0]["image"], "case": "unlabelled"})

    def transform() -> Compose:
        read = LoadImaged("label", ensure_channel_first=True, allow_missing_keys=True)
        steps = of_three_classes(values)[1]
        for step in steps:
            step.allow_missing_keys = True
        return Compose([read, *steps])

    volumes = VolumeCache("disk", tmp_path / "cache", dataset)
    with caplog.at_level("WARNING", logger="cache"):
        kept = cached_dataset(cases, transform(), volumes)
        for index in (1, 2, 1):
            kept[index]
        assert named_values(caplog) == [], "one case has not been seen"
        for index in (0, 1):
            kept[index]
        assert named_values(caplog) == absent
        cached_dataset(cases, transform(), volumes)  # the next run
    assert named_values(caplog) == 2 * absent


def test_bytes_of_a_case_by_hand() -> None:
    assert resampled_bytes((10, 20, 30), 2, True) == 10 * 20 * 30 * (2 * 4 + 1)
    assert resampled_bytes((10, 20, 30), 1, False) == 10 * 20 * 30 * 4
