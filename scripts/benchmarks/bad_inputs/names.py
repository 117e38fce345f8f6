# SPDX-License-Identifier: Apache-2.0
"""Names of files, folders and cases, and paths that lead elsewhere."""

from __future__ import annotations

import shutil

from scripts.benchmarks.bad_inputs.ground import Ground, classes, entry, intensities, save
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, INFER, NEW, TRAIN, Kind, every

ODD = ("scan 1", "a.b.c", "Größe", "日本", "it's", "100%", "[1]", "a,b", "$HOME", "@case", "-dash", "x" * 120)
ALL = (TRAIN, EVALUATE, INFER, CHECK, NEW)


def _odd_file(ground: Ground) -> str:
    name, odd = ground.victim(), ODD[ground.seed % len(ODD)]
    for folder in (ground.image(name).parent, ground.label(name).parent):
        (folder / f"{name}.nii.gz").rename(folder / f"{odd}.nii.gz")
    _list_as(ground, name, entry(odd))
    return ""


def _list_as(ground: Ground, name: str, new: dict[str, str]) -> None:
    for cases in ground.lists.values():
        cases[:] = [new if case == entry(name) else case for case in cases]


def _odd_folder(ground: Ground) -> str:
    data = ground.data.with_name(ODD[ground.seed % len(ODD)].lstrip("$@-"))
    ground.data.rename(data)
    ground.data = data
    ground.settings["dataset_dir"] = str(data)
    return ""


def _odd_output(ground: Ground) -> str:
    ground.out = ground.out / ODD[ground.seed % len(ODD)].lstrip("$@-")
    return ""


def _upper_case(ground: Ground) -> str:
    name = ground.victim()
    ground.image(name).rename(ground.image(name).with_name(f"{name}.NII.GZ"))
    _list_as(ground, name, {**entry(name), "image": f"images/{name}.NII.GZ"})
    return ""


def _unknown_ending(ground: Ground) -> str:
    name, ending = ground.victim(), ground.draw.choice((".png", ".img", ".dcm.txt", ""))
    ground.image(name).rename(ground.image(name).with_name(f"{name}{ending}"))
    _list_as(ground, name, {**entry(name), "image": f"images/{name}{ending}"})
    return f"images/{name}{ending}"


def _one_name_twice(ground: Ground) -> str:
    name = ground.victim()
    for folder in ("images", "labels"):
        (ground.data / folder / "again").mkdir()
        shutil.move(ground.data / folder / f"{name}.nii.gz", ground.data / folder / "again/v0.nii.gz")
    _list_as(ground, name, {"image": "images/again/v0.nii.gz", "label": "labels/again/v0.nii.gz"})
    return ""


def _case_called_as_a_path(ground: Ground) -> str:
    name = ground.victim()
    _list_as(ground, name, {**entry(name), "case": ground.draw.choice(("../../evil", "/elsewhere/evil", "a/b", ".."))})
    return ""


def _path_that_leaves(ground: Ground) -> str:
    name = ground.victim()
    outside = ground.folder / "outside"
    save(outside / f"{name}.nii.gz", intensities(0))
    save(outside / "label.nii.gz", classes())
    path = ground.draw.choice(("../outside", "images/../../outside")) + f"/{name}.nii.gz"
    _list_as(ground, name, {**entry(name), "image": path})
    return path


def _hash_in_a_name(ground: Ground) -> str:
    name = ground.victim()
    for folder in (ground.image(name).parent, ground.label(name).parent):
        (folder / f"{name}.nii.gz").rename(folder / f"{name}#2.nii.gz")
    _list_as(ground, name, entry(f"{name}#2"))
    return ""


KINDS = (
    Kind("file names with spaces, dots, other letters", _odd_file, right=ALL, inputs=12),
    Kind("data folder with such a name", _odd_folder, right=ALL, inputs=12),
    Kind("output folder with such a name", _odd_output, right=(TRAIN, EVALUATE, INFER, CHECK), inputs=8),
    Kind("file name with a #", _hash_in_a_name, right=ALL),
    Kind("ending in capitals", _upper_case, right=ALL),
    Kind("ending that no image has", _unknown_ending, every("no image|cannot be read", TRAIN, EVALUATE, CHECK)),
    Kind("two files of one name", _one_name_twice, right=(TRAIN, EVALUATE, INFER, CHECK)),
    Kind("case called as a path", _case_called_as_a_path, right=(EVALUATE, TRAIN)),
    Kind("path that leaves the data folder", _path_that_leaves, every("leaves", TRAIN, EVALUATE, CHECK)),
)
