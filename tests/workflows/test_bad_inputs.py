# SPDX-License-Identifier: Apache-2.0
"""Every command meets a bad input with an exit code, one `Error:` line that names the file or key, and no result.

Each kind of bad input is a sound dataset, configuration, model and command line with one fault. The first command named
for a kind runs in every test run, the others with `-m slow`. Kinds that do not appear here have unit tests beside the
code that refuses them.
"""

from __future__ import annotations

import functools
import gzip
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from tests import forked_command
from tests.bad_case import (
    CHECK,
    EVALUATE,
    EXPORT,
    INFER,
    NEW,
    RESULTS,
    SETTINGS,
    TRAIN,
    Case,
    assert_refused,
    obey_file_permissions,
    run,
    weights,
)  # fmt: skip
from tests.check_folder import UNLABELLED, CheckFolder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command succeeds. Read only."""
    forked_command.load_libraries()
    root = tmp_path_factory.mktemp("sound")
    data = CheckFolder(root / "data")
    for name in UNLABELLED:
        data.label(name).unlink()
    (root / "models").mkdir()
    torch.save(weights(), root / "models/model.pt")
    return root


@pytest.fixture
def make_case(sound: Path, tmp_path: Path) -> Callable[[str], Case]:
    def make(command: str) -> Case:
        root = tmp_path / "case"
        data = CheckFolder(root / "data")
        shutil.rmtree(root)
        shutil.copytree(sound, root)
        for entry in data.lists["training"]:
            if not (data.root / entry["label"]).exists():
                del entry["label"]
        return Case(root, command, data, {**SETTINGS, "dataset_dir": str(data.root)})

    return make


# ------------------------------------------------------------------ kinds of bad inputs

Spoil = Callable[[Case], str]
"""Puts one fault into a sound case, and returns the file or key that the error must name."""

KINDS: list[tuple[Spoil, str, bool]] = []


def bad_input(*commands: str) -> Callable[[Spoil], Spoil]:
    """Register a kind for the commands that meet it; all but the first of them are slow."""

    def register(spoil: Spoil) -> Spoil:
        KINDS.extend((spoil, command, place > 0) for place, command in enumerate(commands))
        return spoil

    return register


@bad_input(INFER, TRAIN, EVALUATE, CHECK, NEW)
def truncated_image(case: Case) -> str:
    case.image.write_bytes(case.image.read_bytes()[:-200])
    return case.image.name


@bad_input(CHECK, TRAIN, EVALUATE, NEW)
def empty_label_file(case: Case) -> str:
    case.label.write_bytes(b"")
    return f"labels/{case.label.name}"


@bad_input(TRAIN, EVALUATE, CHECK)
def missing_label(case: Case) -> str:
    case.label.unlink()
    return f"labels/{case.label.name}"


@bad_input(INFER, TRAIN, EVALUATE, CHECK)
def image_is_a_link_to_nothing(case: Case) -> str:
    case.image.unlink()
    case.image.symlink_to("moved_away.nii.gz")
    return case.image.name


@bad_input(CHECK, TRAIN, EVALUATE)
def folder_under_the_name_of_an_image(case: Case) -> str:
    case.image.unlink()
    case.image.mkdir()
    return case.image.name


@bad_input(NEW, TRAIN, EVALUATE, INFER, CHECK)
def image_without_permission_to_read(case: Case) -> str:
    case.image.chmod(0)
    case.prepare = obey_file_permissions
    return case.image.name


@bad_input(CHECK, TRAIN, EVALUATE)
def folder_under_the_name_of_the_datalist(case: Case) -> str:
    (case.data.root / "dataset.json").mkdir()
    return "dataset.json"


@bad_input(TRAIN)
def models_folder_without_permission_to_write(case: Case) -> str:
    case.model.parent.chmod(0o555)
    case.prepare = obey_file_permissions
    return str(case.model.parent)


@bad_input(CHECK, TRAIN, EVALUATE, INFER)
def expression_that_fails(case: Case) -> str:
    case.settings["spacing"] = "$[1.0, 2.0, 1 / 0]"
    return case.settings["spacing"]


@bad_input(TRAIN, EVALUATE, INFER)
def value_of_another_type_in_a_transform(case: Case) -> str:
    window = {"a_min": "low", "a_max": 200, "b_min": 0, "b_max": 1}
    case.settings["intensity"] = {"_target_": "ScaleIntensityRanged", "keys": "image", **window}
    return "ScaleIntensityRange"


@bad_input(NEW)
def missing_folder_of_labels(case: Case) -> str:
    case.options += ["--labels", "/nowhere"]
    return "/nowhere"


@bad_input(NEW)
def missing_folder_of_unlabelled_images(case: Case) -> str:
    case.options += ["--unlabelled", "/nowhere"]
    return "/nowhere"


@bad_input(EVALUATE, TRAIN, INFER, CHECK, NEW)
def missing_data_folder(case: Case) -> str:
    shutil.rmtree(case.data.root)
    return str(case.data.root)


@bad_input(INFER, TRAIN, EVALUATE, CHECK, NEW)
def output_folder_is_a_file(case: Case) -> str:
    case.out.write_text("a file", encoding="utf-8")
    return str(case.out)


@bad_input(EVALUATE, TRAIN, INFER, CHECK, NEW)
def output_folder_without_permission_to_write(case: Case) -> str:
    case.out.mkdir(mode=0o555)
    case.prepare = obey_file_permissions
    return str(case.out)


@bad_input(EXPORT, TRAIN)
def full_disk(case: Case) -> str:
    case.prepare = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (30_000, 30_000))
    return ""


@bad_input(TRAIN, EVALUATE, INFER, CHECK)
def nan_in_an_image(case: Case) -> str:
    array = case.data.image_of(case.victim).astype(np.float32)
    array[3, 4, 5] = np.nan
    case.data.save_image(case.victim, array)
    return case.image.name


@bad_input(INFER, TRAIN, EVALUATE, CHECK)
def image_with_undeclared_channels(case: Case) -> str:
    case.data.save_image(case.victim, np.stack([case.data.image_of(case.victim)] * 2, axis=-1))
    return case.image.name


@bad_input(INFER, TRAIN, EVALUATE, CHECK, NEW)
def image_whose_header_promises_no_voxels(case: Case) -> str:
    content = bytearray(gzip.decompress(case.image.read_bytes()))
    struct.pack_into("<3h", content, 42, 18, 0, 16)  # dim[1] to dim[3] of a NIfTI-1 header
    case.image.write_bytes(gzip.compress(bytes(content)))
    return case.image.name


@bad_input(NEW, TRAIN, CHECK)
def label_of_another_shape(case: Case) -> str:
    case.data.save_label(case.victim, case.data.classes()[1:])
    return f"labels/{case.label.name}"


@bad_input(CHECK, TRAIN, NEW)
def label_elsewhere_in_space(case: Case) -> str:
    grid = nibabel.load(case.label).affine.copy()
    grid[1, 3] += 20.0
    case.data.save_label(case.victim, case.data.classes(), grid)
    return f"labels/{case.label.name}"


@bad_input(TRAIN, EVALUATE, CHECK)
def undeclared_label_value(case: Case) -> str:
    label = case.data.classes()
    label[3, 4, 5] = 7
    case.data.save_label(case.victim, label)
    return f"labels/{case.label.name}"


@bad_input(NEW, TRAIN, EVALUATE, CHECK)
def label_value_between_whole_numbers(case: Case) -> str:
    label = case.data.classes().astype(np.float32)
    label[3, 4, 5] = 0.5
    case.data.save_label(case.victim, label)
    return f"labels/{case.label.name}"


@bad_input(CHECK, TRAIN, EVALUATE)
def datalist_is_not_json(case: Case) -> str:
    (case.data.root / "dataset.json").write_text('{"training": [', encoding="utf-8")
    return "dataset.json"


@bad_input(EVALUATE, TRAIN, CHECK)
def datalist_entry_without_an_image(case: Case) -> str:
    section = "test" if case.command == EVALUATE else "training"
    case.data.lists[section].insert(1, {"label": "labels/l0.nii.gz"})
    return section


@bad_input(TRAIN, EVALUATE, CHECK)
def image_in_training_and_test(case: Case) -> str:
    case.data.lists["test"].append(case.data.entry("l1"))
    return "l1"


@bad_input(EVALUATE)
def case_to_test_without_a_label(case: Case) -> str:
    del case.data.lists["test"][1]["label"]
    return "t1"


@bad_input(TRAIN, EVALUATE, CHECK)
def more_labelled_cases_than_there_are(case: Case) -> str:
    case.settings["labelled_cases"] = 1000
    return "labelled_cases"


@bad_input(CHECK, TRAIN, EVALUATE)
def path_that_leaves_the_data_folder(case: Case) -> str:
    case.data.lists["training"][0]["image"] = "../outside/l0.nii.gz"
    return "../outside/l0.nii.gz"


@bad_input(TRAIN, EVALUATE, INFER, CHECK)
def override_out_of_range(case: Case) -> str:
    case.options += ["--spacing", "[0,1,1]"]
    return "spacing"


@bad_input(INFER, TRAIN, EVALUATE, CHECK)
def misspelt_override(case: Case) -> str:
    case.options += ["--spaccing", "1"]
    return "spacing"


@bad_input(EVALUATE, TRAIN, INFER, CHECK)
def misspelt_run_id(case: Case) -> str:
    case.run_id = "evaluate_all"
    return "evaluate_all"


@bad_input(NEW)
def option_of_new_dataset_out_of_range(case: Case) -> str:
    case.options += ["--test_fraction", "1.5"]
    return "test_fraction"


@bad_input(INFER, TRAIN, EVALUATE, CHECK)
def misspelt_key_of_a_config_file(case: Case) -> str:
    case.settings["spaicng"] = case.settings.pop("spacing")
    return "spaicng"


@bad_input(CHECK, TRAIN, EVALUATE, INFER)
def key_twice_in_a_config_file(case: Case) -> str:
    text = yaml.safe_dump(case.settings) + "roi_size: [16, 16, 16]\n"
    (case.root / "mine.yaml").write_text(text, encoding="utf-8")
    return "roi_size"


@bad_input(TRAIN, EVALUATE, INFER)
def misspelt_class_in_a_config_file(case: Case) -> str:
    case.settings["intensity"] = {"_target_": "ScaleIntensityRangeDict2", "keys": "image"}
    return "ScaleIntensityRangeDict2"


@bad_input(TRAIN, INFER)
def keys_that_refer_to_each_other(case: Case) -> str:
    case.settings |= {"in_channels": "@stem_stride", "stem_stride": "$@in_channels + 1"}
    return "in_channels"


@bad_input(INFER, EVALUATE, EXPORT)
def missing_model(case: Case) -> str:
    case.model.unlink()
    return "model.pt"


@bad_input(EVALUATE, INFER, EXPORT)
def truncated_model(case: Case) -> str:
    case.model.write_bytes(case.model.read_bytes()[:-1000])
    return "model.pt"


@bad_input(EXPORT, EVALUATE, INFER)
def model_of_other_classes(case: Case) -> str:
    torch.save(weights(out_channels=5), case.model)
    return "model.pt"


@bad_input(EVALUATE, INFER, EXPORT)
def model_with_nan(case: Case) -> str:
    state = weights()
    next(value for key, value in state.items() if key.endswith("weight")).view(-1)[0] = torch.nan
    torch.save(state, case.model)
    return "model.pt"


@dataclass
class Hostile:
    """Unpickled, it makes a file."""

    path: Path

    def __reduce__(self) -> tuple[Callable, tuple[Path]]:
        return Path.touch, (self.path,)


@bad_input(INFER, EVALUATE, EXPORT)
def model_that_would_run_code(case: Case) -> str:
    case.model.write_bytes(pickle.dumps({"weight": Hostile(case.root / "code_ran")}))
    return "model.pt"


@bad_input(TRAIN)
def checkpoint_that_would_run_code(case: Case) -> str:
    torch.save({"run": Hostile(case.root / "code_ran")}, case.model.with_name("checkpoint_00000001.pt"))
    case.options += ["--resume", "true"]
    return "models"


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize(
    ("spoil", "command"),
    [
        pytest.param(spoil, command, id=f"{spoil.__name__}-{command}", marks=[pytest.mark.slow] if slow else [])
        for spoil, command, slow in KINDS
    ],
)
def test_a_bad_input_is_refused_by_name_without_a_result(spoil: Spoil, command: str, make_case) -> None:
    case = make_case(command)
    named = spoil(case)
    assert_refused(case, named, *run(case))


ODD_NAMES = ("scan 1", "a.b.c#2", "Größe 日本", "it's", "100%", "[1],b", "$HOME", "@case", "-dash" + "x" * 120)


@pytest.mark.parametrize(
    "command", [INFER, *(pytest.param(c, marks=pytest.mark.slow) for c in (TRAIN, EVALUATE, CHECK, NEW))]
)
def test_odd_names_of_cases_are_no_obstacle(command: str, make_case) -> None:
    case = make_case(command)
    cases = [entry for entries in case.data.lists.values() for entry in entries]
    for name, entry in zip(ODD_NAMES, cases, strict=True):
        for key, path in entry.items():
            entry[key] = f"{key}s/{name}.nii.gz"
            (case.data.root / path).rename(case.data.root / entry[key])
    done, results = run(case)
    assert done.code == 0, done.errors
    assert "Traceback" not in done.errors
    assert command != INFER or results == sorted(f"out/{name}_seg.nii.gz" for name in ODD_NAMES)
    assert bool(results) == bool(RESULTS[command])


@pytest.mark.parametrize("command", [EVALUATE, pytest.param(TRAIN, marks=pytest.mark.slow)])
def test_the_name_of_a_case_is_never_taken_for_a_path(command: str, make_case) -> None:
    case = make_case(command)
    for entry in case.data.lists["test"] + case.data.lists["training"]:
        if entry == case.data.entry(case.victim):
            entry["case"] = "../../evil"
    done, results = run(case)
    assert done.code == 0, done.errors
    assert results


@pytest.mark.parametrize("change", ["new", "changed", "removed"])
def test_the_judge_sees_a_file_that_a_command_changes_outside_its_folders(change, make_case, monkeypatch) -> None:
    case = make_case(INFER)

    def spoil(_words, folder: Path, *_) -> forked_command.Finished:
        file = folder / "data/images" / ("new.nii.gz" if change == "new" else "l1.nii.gz")
        file.unlink() if change == "removed" else file.write_bytes(b"changed")
        return forked_command.Finished(1, "", "Error: x")

    monkeypatch.setattr(forked_command, "run", spoil)
    with pytest.raises(AssertionError):
        run(case)
