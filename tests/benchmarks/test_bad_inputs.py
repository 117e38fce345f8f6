# SPDX-License-Identifier: Apache-2.0
"""One input of each kind of the campaign, and the judge itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks import forked_command
from scripts.benchmarks.bad_inputs.__main__ import GROUPS, inputs
from scripts.benchmarks.bad_inputs.ground import Ground, ground_from, make_sound
from scripts.benchmarks.bad_inputs.judge import REFUSED, changed, judge, listing
from scripts.benchmarks.bad_inputs.kind import CHECK, COMMANDS, EVALUATE, EXPORT, INFER, NEW, TRAIN, Kind
from scripts.benchmarks.bad_inputs.trial import table, try_input
from scripts.benchmarks.forked_command import Finished

QUICKEST_FIRST = (NEW, CHECK, EXPORT, INFER, EVALUATE, TRAIN)
KINDS = [kind for kinds in GROUPS.values() for kind in kinds]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forked_command.load_libraries()
    return make_sound(tmp_path_factory.mktemp("bad_inputs") / "sound")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_bad_input_gives_the_right_result_or_one_sentence(kind: Kind, sound: Path, tmp_path) -> None:
    seed = kind.commands.index(min(kind.commands, key=QUICKEST_FIRST.index))
    _, _, verdict = try_input(kind, seed, sound, tmp_path / "input")
    assert verdict.good, f"{verdict.outcome}: {verdict.sentence}"


def test_the_campaign_is_as_large_as_it_says() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 40
    everything = inputs(seeds=1)
    assert len(everything) >= 200
    assert {kind.commands[seed % len(kind.commands)] for _, kind, seed in everything} == set(COMMANDS)


# ------------------------------------------------------------------ the judge


@pytest.fixture
def ground(sound: Path, tmp_path: Path) -> Ground:
    return ground_from(sound, tmp_path / "ground", TRAIN, 0)


KIND = Kind("any", lambda ground: "max_steps", {TRAIN: "must be"})


def outcome(ground: Ground, code: int | None, errors: str, write: str | None = None) -> str:
    before = listing(ground.folder)
    if write is not None:
        (ground.folder / write).parent.mkdir(exist_ok=True)
        (ground.folder / write).write_text("x", encoding="utf-8")
    return judge(KIND, ground, "max_steps", Finished(code, "", errors), before).outcome


def test_one_sentence_that_names_the_key_is_right(ground: Ground) -> None:
    assert outcome(ground, 1, "a warning\n\nError: max_steps must be 1.\n", "out/events.log") == REFUSED


@pytest.mark.parametrize(
    ("code", "errors", "write", "wrong"),
    [
        (0, "Error: max_steps must be 1.", None, "ended with 0"),
        (None, "Error: max_steps must be 1.", None, "took too long"),
        (1, "Traceback (most recent call last):\nError: max_steps must be 1.", None, "a traceback"),
        (1, "max_steps must be 1.", None, "no sentence at the end"),
        (1, "Error: it must be 1.", None, "does not name max_steps"),
        (1, "Error: max_steps is wrong.", None, "does not say: must be"),
        (1, "Error: max_steps must be 1.", "models/model_best.pt", "left models/model_best.pt"),
        (1, "Error: max_steps must be 1.", "models/model.pt", "left models/model.pt"),  # there was another
        (1, "Error: max_steps must be 1.", "data/images/new.txt", "changed data/images/new.txt"),
    ],
)
def test_anything_else_is_wrong_and_told(ground: Ground, code, errors, write, wrong) -> None:
    assert outcome(ground, code, errors, write) == wrong


def test_a_changed_and_a_removed_file_show() -> None:
    before = {"data/a": (1, 1), "data/b": (1, 1), "out/c": (1, 1)}
    assert changed(before, {"data/a": (1, 2), "out/c": (2, 2)}) == ["data/a", "data/b"]


def test_the_table_counts_each_kind_and_all() -> None:
    rows = [
        {"group": "files", "kind": "torn", "command": "training", "outcome": REFUSED},
        {"group": "files", "kind": "torn", "command": "inference", "outcome": "a traceback"},
    ]
    assert table(rows).splitlines()[2:] == [
        "| files | torn | training, inference | 2 | 1 | 0 | 0 | 1 |",
        "| all | 1 kinds | 2 commands | 2 | 1 | 0 | 0 | 1 |",
    ]
