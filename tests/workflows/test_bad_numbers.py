# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite, in real runs of configs/train.yaml: caught, named, counted, never applied."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import MapTransform

from scripts.errors import root_user_error
from scripts.losses.base import LossTerm, TrainingBatch
from tests import forked_command
from tests.campaigns.kill_runs import training_command
from tests.recorded_runs import differences

HERE = "tests.workflows.test_bad_numbers"
MARK = "WARNING GradientGuard: "
SPOILT_STEP = 2
KEPT_STEPS = 4


class NotANumberd(MapTransform):
    """A normalisation that fails on some images: one voxel NaN in cases whose name holds `word`.

    Files with such a voxel are refused when they are read; this stands for what comes up behind the reader.
    """

    def __init__(self, keys: str, word: str = "") -> None:
        super().__init__(keys)
        self.word = word

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.word in result["case"]:
            result["image"] = result["image"].clone()
            # A whole plane of voxels, so that every patch has some.
            result["image"][:, :, :, ::4] = torch.nan
        return result


class FaultyTerm(LossTerm):
    """0 with a gradient of 0, but for one step or all: then an infinite value, or a gradient that bf16 cannot hold."""

    def __init__(self, fault: str, always: bool = False) -> None:
        super().__init__(1.0)
        self.fault, self.always, self.step = fault, always, 0

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        self.step += 1
        if self.step != SPOILT_STEP and not self.always:
            return batch.logits.sum() * 0.0
        if self.fault == "loss":
            return batch.logits.sum() * torch.inf
        # 3.4e38 is below the largest number of float32, 3.4028e38, and above that of bf16, 3.3895e38.
        return 3.4e38 * (batch.logits - batch.logits.detach())[0, 0, 0, 0, 0]


def states(folder: Path) -> dict[int, dict[str, Any]]:
    return {
        n: torch.load(folder / f"models/checkpoint_{n:08d}.pt", weights_only=True) for n in range(1, KEPT_STEPS + 1)
    }


@pytest.fixture
def run(make_workflow: Callable[..., Any], tmp_path: Path, capsys) -> Callable[..., tuple[dict, list[str]]]:
    """Train a few steps, each of them saved; returns the states and what the guard said."""

    def go(*files: str, **overrides: Any) -> tuple[dict, list[str]]:
        lengths = {"max_steps": KEPT_STEPS, "save_interval": 1, "keep_states": KEPT_STEPS, "val_interval": KEPT_STEPS}
        make_workflow("train.yaml", *files, **lengths, **overrides).run()
        # MONAI sets logging up anew, which takes pytest's own handler away.
        said = [line.partition(MARK)[2] for line in capsys.readouterr().out.splitlines() if MARK in line]
        return states(tmp_path), said

    return go


def assert_only_these_are_skipped(states: dict[int, dict[str, Any]], skipped: list[int]) -> None:
    """Network, teacher, heads, memory and the optimiser's moments after a step are those before it, or they are not."""
    for state in states.values():
        state["moments"] = state["optimizer"]["state"]  # the learning rate beside them follows the step
    for step in range(2, KEPT_STEPS + 1):
        before, after = states[step - 1], states[step]
        same = {name: not differences(before[name], after[name]) for name in ("network", "teacher", "loss", "moments")}
        assert set(same.values()) == {step in skipped}, (step, same)
    assert states[KEPT_STEPS]["guard"]["bad_steps"] == len(skipped)


def test_an_image_that_becomes_nan_costs_its_steps_and_is_named(run, tiny_demo) -> None:
    """Of two labelled cases that take turns one is spoilt."""
    states, said = run(intensity={"_target_": f"{HERE}.NotANumberd", "keys": "image", "word": "training_000"})
    skipped = [step for step in range(1, KEPT_STEPS + 1) if any(f"Step {step} skipped" in words for words in said)]
    assert len(skipped) == len(said) == 2
    assert_only_these_are_skipped(states, skipped)
    for words in said:
        assert "supervised is nan" in words and "training_000" in words.split("Cases: ")[1]


def test_an_infinite_loss_in_one_term_is_named_and_its_step_leaves_no_trace(run) -> None:
    states, said = run(**{"terms::faulty": {"_target_": f"{HERE}.FaultyTerm", "fault": "loss"}})
    assert_only_these_are_skipped(states, [SPOILT_STEP])
    (words,) = said
    assert words.startswith("Step 2 skipped, 1 so far: ")
    assert "(of its terms faulty is " in words and "supervised" not in words


IN_BF16 = {
    "train::inferer::dtype": "$torch.bfloat16",  # `--precision bf16` is refused where the hardware has none
    "widths": [2, 2, 2, 2],
    "norm": "instance",  # bf16 is slow where it is emulated
    "batch_unlabelled": 0,
    "roi_size": [48, 48, 32],  # on tinier grids a CPU's own bf16 gradients are NaN, scripts/training/precision.py
}


def test_a_gradient_that_overflows_in_bf16_is_named_and_its_step_leaves_no_trace(run) -> None:
    states, said = run(**IN_BF16, **{"terms::faulty": {"_target_": f"{HERE}.FaultyTerm", "fault": "gradient"}})
    assert_only_these_are_skipped(states, [SPOILT_STEP])
    (words,) = said
    assert "the loss is finite, but not its gradient, in " in words and "the last of them network.output." in words


def test_a_run_whose_every_step_overflows_in_bf16_ends_with_the_precision_to_take(run) -> None:
    always = {"_target_": f"{HERE}.FaultyTerm", "fault": "gradient", "always": True}
    with pytest.raises(Exception) as caught:
        run(**IN_BF16, **{"terms::faulty": always, "train::guard::patience": 2})
    told = root_user_error(caught.value)
    assert told is not None and "2 steps in a row" in str(told) and "--precision fp32" in str(told)


def test_the_command_ends_after_as_many_in_a_row_as_the_yaml_says(tiny_demo, tmp_path) -> None:
    spoilt = tmp_path / "spoilt.yaml"
    spoilt.write_text(
        f"intensity: {{_target_: {HERE}.NotANumberd, keys: image}}\ntrain::guard::patience: 3\n", encoding="utf-8"
    )
    words = training_command("default", 0, tiny_demo, tmp_path)
    place = words.index("--config_file") + 1
    words[place] = words[place].replace("]", f", '{spoilt}']")
    ended = forked_command.run(words, tmp_path, 120)
    assert ended.code == 1
    last = ended.errors.strip().splitlines()[-1]
    assert last.startswith("Error: 3 steps in a row had a non-finite loss or gradient"), last
    assert "case" in last and "supervised is nan" in last and "--learning_rate" in last
    assert "Traceback" not in ended.errors
    assert "Step 3 skipped, 3 so far" in ended.output + ended.errors
    assert not (tmp_path / "models/model.pt").exists()
