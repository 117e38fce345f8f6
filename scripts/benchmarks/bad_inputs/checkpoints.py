# SPDX-License-Identifier: Apache-2.0
"""Models that are missing, broken, hostile or of another network."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.benchmarks.bad_inputs.ground import Ground, weights
from scripts.benchmarks.bad_inputs.kind import EVALUATE, EXPORT, INFER, TRAIN, Kind, Spoil, every

LOADING = (EVALUATE, INFER, EXPORT)


def _model(change: Callable[[Ground, Path], None]) -> Spoil:
    def spoil(ground: Ground) -> str:
        change(ground, ground.models / "model.pt")
        return "model.pt"

    return spoil


def _remove(ground: Ground, file: Path) -> None:
    file.unlink()


def _truncate(ground: Ground, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * ground.draw.uniform(0.0, 0.99))])


def _text(ground: Ground, file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")


def _wider(ground: Ground, file: Path) -> None:
    torch.save(weights(base_filters=8), file)


def _more_classes(ground: Ground, file: Path) -> None:
    torch.save(weights(out_channels=ground.draw.choice((2, 5))), file)


def _other_names(ground: Ground, file: Path) -> None:
    prefix = ground.draw.choice(("module.", "student."))
    torch.save({prefix + key: value for key, value in weights().items()}, file)


def _incomplete(ground: Ground, file: Path) -> None:
    state = weights()
    for key in ground.draw.sample(sorted(state), 3):
        del state[key]
    torch.save(state, file)


def _no_state(ground: Ground, file: Path) -> None:
    torch.save(ground.draw.choice(([1, 2], {}, 5, {"epoch": 3}, torch.zeros(3))), file)


def _not_finite(ground: Ground, file: Path) -> None:
    state = weights()
    key = ground.draw.choice(
        [key for key, value in state.items() if value.is_floating_point() and key.endswith("weight")]
    )
    state[key].view(-1)[0] = ground.draw.choice((float("nan"), float("inf")))
    torch.save(state, file)


class _Hostile:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[Path]]:
        return Path.touch, (self.path,)


def _hostile(ground: Ground, file: Path) -> None:
    hostile = {"weight": _Hostile(ground.folder / "code_ran")}  # a file outside of out/ and models/ shows as a change
    if ground.draw.random() < 0.5:
        torch.save(hostile, file)
    else:
        file.write_bytes(pickle.dumps(hostile))


def _hostile_state(ground: Ground) -> str:
    torch.save({"run": _Hostile(ground.folder / "code_ran")}, ground.models / "checkpoint_00000001.pt")
    ground.more += ["--resume", "true"]
    return "models"


def _another_name(ground: Ground) -> str:
    ground.more += ["--checkpoint", "model_bset.pt"]
    return "model_bset.pt"


KINDS = (
    Kind("model missing", _model(_remove), every("does not exist", *LOADING)),
    Kind("model of another name", _another_name, every("does not exist", EVALUATE, INFER)),
    Kind("truncated model", _model(_truncate), every("", *LOADING)),
    Kind("text under a model's name", _model(_text), every("", *LOADING)),
    Kind("model of a wider network", _model(_wider), every("", *LOADING)),
    Kind("model of other classes", _model(_more_classes), every("", *LOADING)),
    Kind("weights under other names", _model(_other_names), every("", *LOADING)),
    Kind("weights missing", _model(_incomplete), every("", *LOADING)),
    Kind("no weights in the file", _model(_no_state), every("", *LOADING)),
    Kind("weights that are not finite", _model(_not_finite), every("finite|NaN", *LOADING)),
    Kind("model that would run code", _model(_hostile), every("", *LOADING)),
    Kind("state that would run code", _hostile_state, {TRAIN: "No state"}),
)
