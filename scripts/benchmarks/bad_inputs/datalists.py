# SPDX-License-Identifier: Apache-2.0
"""Datalists that are broken, incomplete or contradict themselves."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benchmarks.bad_inputs.ground import Ground, entry
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, NEW, TRAIN, Kind, Spoil, every

LISTED = (TRAIN, EVALUATE, CHECK)


def _text(*texts: str | bytes) -> Spoil:
    def spoil(ground: Ground) -> str:
        text = ground.draw.choice(texts)
        ground.lists = {}
        (ground.data / "dataset.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "dataset.json"

    return spoil


def _change(change: Callable[[Ground], str]) -> Spoil:
    return change


def _no_datalist(ground: Ground) -> str:
    (ground.data / "dataset.json").unlink()
    return "dataset.json"


def _datalist_is_a_folder(ground: Ground) -> str:
    (ground.data / "dataset.json").unlink()
    (ground.data / "dataset.json").mkdir()
    return "dataset.json"


def _bad_entry(ground: Ground) -> str:
    bad = ground.draw.choice(
        ({"label": "labels/l0.nii.gz"}, {"image": 5}, 7, None, {"image": ["images/l0.nii.gz", 3]}, [])
    )
    ground.lists["training"].insert(ground.draw.randrange(3), bad)
    return "training"


def _list_of_another_kind(ground: Ground) -> str:
    section = ground.draw.choice(("validation", "test", "unlabeled", "training"))
    ground.lists[section] = ground.draw.choice(({"image": "a"}, "images/l0.nii.gz", 5))
    return section


def _validation_without_label(ground: Ground) -> str:
    ground.lists["validation"] = [{"image": "images/v0.nii.gz"}]
    return "v0"


def _test_without_label(ground: Ground) -> str:
    del ground.lists["test"][ground.draw.randrange(2)]["label"]
    return "t"


def _no_tests(ground: Ground) -> str:
    ground.lists["test"] = []
    return "test"


def _two_roles(ground: Ground) -> str:
    name = ground.victim()
    name = "l0" if name.startswith("t") else name
    ground.lists[ground.draw.choice(("validation", "test"))].append(entry(name))
    return name


def _without_labels(ground: Ground) -> str:
    ground.settings["labelled_cases"] = None
    for case in ground.lists["training"]:
        case.pop("label", None)
    return "dataset.json"


def _too_many_labelled(ground: Ground) -> str:
    ground.settings["labelled_cases"] = ground.draw.choice((5, 1000))
    return "labelled_cases"


def _all_held_out(ground: Ground) -> str:
    ground.settings["validation_cases"] = ground.draw.choice((3, 50))
    return "validation_cases"


KINDS = (
    Kind("datalist missing", _no_datalist, every("does not exist", *LISTED)),
    Kind("folder under the datalist's name", _datalist_is_a_folder, every("", *LISTED)),
    Kind(
        "datalist that is no JSON",
        _text('{"training": [', "training: []", b"\xff\xfe\x00{", ""),
        every("JSON", *LISTED),
    ),
    Kind("datalist without cases", _text("[]", "{}", '{"training": []}', '"x"', "null"), every("training", *LISTED)),
    Kind("entry that is no case", _bad_entry, every("image|path", *LISTED)),
    Kind("list that is none", _list_of_another_kind, every("list|no `image`", *LISTED)),
    Kind("validation case without a label", _validation_without_label, every("label", *LISTED)),
    Kind("test case without a label", _test_without_label, every("label", EVALUATE), right=(TRAIN, CHECK)),
    Kind("no test cases", _no_tests, every("no test cases", EVALUATE), right=(TRAIN, CHECK)),
    Kind("image in two roles", _two_roles, every("both|two|and", *LISTED)),
    Kind("no label at all", _without_labels, every("label", *LISTED, NEW)),
    Kind("more labelled cases than there are", _too_many_labelled, every("must be from 1 to 4|has no label", *LISTED)),
    Kind("all labelled cases held out", _all_held_out, every("must train", *LISTED)),
)
