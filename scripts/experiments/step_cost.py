# SPDX-License-Identifier: Apache-2.0
r"""Measure time and peak memory of a training step with different settings.

    python -m scripts.experiments.step_cost settings --base norm=instance \
        accumulation_steps=2 train::inferer::activation_checkpointing=true
    python -m scripts.experiments.step_cost growth roi_size [32,32,32] [48,48,48] [64,64,64] --figure growth.png
    python -m scripts.experiments.step_cost authors --reference SSNET
    python -m scripts.experiments.step_cost compile

`settings` trains for a few steps with the unchanged `configs/train.yaml` and with each given override (several are
joined by a comma outside of brackets), in turn, each time in a separate process. All voxels and cases are used from the
first step. `growth` does the same for several values of one setting. `authors` runs the unchanged `train_ss_3d.py` of a
checkout of https://github.com/ycwu1997/SS-Net on noise, and `configs/methods/ssnet.yaml` with the same network, patch
and batch, in turn. `compile` compares a forward and backward pass of `VNet` with and without torch.compile, and counts
the calls of a forward hook. Processor time is measured, because other work on the machine affects it less than wall
time. All commands compute on the CPU in one thread.
"""

from __future__ import annotations

import argparse
import copy
import re
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from ignite.engine import Engine, Events
from monai.transforms import Compose
from torch import nn
from torch.utils.data import DataLoader

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.measure import (
    EVERYTHING,
    command_line,
    in_process,
    peak_mib,
    reference_modules,
    run_measurement,
    training_run,
)
from scripts.networks.vnet import VNet
from scripts.training.precision import autocast_dtype, place


def parse_settings(text: str) -> dict[str, Any]:
    """Parse overrides from `key=value,key=value`; values are YAML.

    >>> parse_settings("roi_size=[48,48,32],accumulation_steps=2")
    {'roi_size': [48, 48, 32], 'accumulation_steps': 2}
    """
    pairs = [pair.split("=", 1) for pair in re.split(r",(?=[\w:]+=)", text) if pair]
    return {key: yaml.safe_load(value) for key, value in pairs}


def settings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and peak memory of a step of the default method, relative to the settings without an override."""
    medians = _medians_in_turn(options, ["", *options.settings])
    return [
        {
            "settings": name or options.base or "as they are",
            "step s": round(values["seconds"], 3),
            "time, relative": round(values["seconds"] / medians[""]["seconds"], 2),
            "memory MiB": round(values["mebibytes"]),
            "memory, relative": round(values["mebibytes"] / medians[""]["mebibytes"], 2),
        }
        for name, values in medians.items()
    ]


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and peak memory of a step of the default method for each value of a setting; of a list, its product."""
    medians = _medians_in_turn(options, [f"{options.setting}={value}" for value in options.values])
    return [
        {
            options.setting: int(np.prod(next(iter(parse_settings(name).values())))),
            "step s": round(values["seconds"], 3),
            "memory MiB": round(values["mebibytes"]),
        }
        for name, values in medians.items()
    ]


def _medians_in_turn(options: argparse.Namespace, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return medians of `_measured_run` for each of the settings, each in addition to `--base`."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        ensure_demo_dataset(Path(folder, "demo"))
        for _ in range(options.repeats):
            for name, measured in rows.items():
                overrides = {**parse_settings(options.base), **parse_settings(name)}
                measured.append(in_process(_measured_run, options, overrides, folder))
    return _medians(rows)


def _medians(measured: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each key over the runs of each name."""
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in measured.items()
    }


def _measured_run(options: argparse.Namespace, overrides: dict[str, Any], folder: str) -> dict[str, float]:
    """Return the median processor seconds per step after the first one, and the increase of peak memory."""
    given = {"max_steps": options.steps + 1, "val_interval": 10**6, "num_workers": 0, **EVERYTHING, **overrides}
    workflow = training_run(Path(folder), options.config, dataset_dir=Path(folder, "demo"), **given)
    starts: list[float] = []
    seconds: list[float] = []
    before = 0.0

    def begin(engine: Engine) -> None:
        nonlocal before
        if engine.state.iteration == 1:
            before = peak_mib(reset=True)
        starts.append(time.process_time())

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, begin)
    workflow.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: seconds.append(time.process_time() - starts[-1])
    )
    workflow.run()
    workflow.finalize()
    return {"seconds": statistics.median(seconds[1:]), "mebibytes": peak_mib() - before}


SSNET = {
    "dataset_name": "phantoms",  # not the demo, whose classes they have
    "label_names": ["background", "organ"],
    "label_values": [0, [1, 2, 3]],
    "roi_size": [112, 112, 80],
    "batch_labelled": 2,
    "batch_unlabelled": 2,
    "base_filters": 16,
    "norm": "batch",
    "network_def::dropout_prob": 0.5,
}
"""Network, patch, batch and number of classes of the authors' script."""

EXACT = {"prototype_loss::samples_per_class": None, "prototype_loss::embeddings_through_heads": "all"}
"""Overrides with which all voxels are used in the contrast and in the heads, as in the authors' code."""


def authors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and peak memory of a step of SS-Net: the authors' code, and ours with the same work and as configured.

    Ours is measured in fp32, and in bf16 if the CPU computes it.
    """
    options.config = ["networks/vnet.yaml", "methods/ssnet.yaml"]
    precisions = ["fp32"] if autocast_dtype("auto", "cpu") is None else ["fp32", "bf16"]
    with tempfile.TemporaryDirectory() as folder:
        ensure_demo_dataset(Path(folder, "demo"))
        runs = {"authors": partial(_authors_run, options.reference.absolute(), options.steps)}
        for precision in precisions:
            for words, overrides in (("ours, all voxels", SSNET | EXACT), ("ours", SSNET)):
                overrides = overrides | {"precision": precision}
                runs[f"{words}, {precision}"] = partial(_measured_run, options, overrides, folder)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                measured[name].append(in_process(run))
    medians = _medians(measured)
    return [
        {
            "code": name,
            "step s": round(values["seconds"], 1),
            "times as fast": round(medians["authors"]["seconds"] / values["seconds"], 2),
            "memory MiB": round(values["mebibytes"]),
            "memory, relative": round(values["mebibytes"] / medians["authors"]["mebibytes"], 2),
        }
        for name, values in medians.items()
    ]


def _authors_run(reference: Path, steps: int) -> dict[str, float]:
    """Measure the authors' script on generated volumes; the result has the form of `_measured_run`.

    The script reads HDF5 files, writes curves, and uses a GPU and loader processes. Mock objects give it noise, discard
    the curves, leave tensors on the CPU, and load in the main process, because loader processes may need more shared
    memory than a container has.
    """
    volume = np.random.default_rng(0).normal(size=(140, 140, 96)).astype(np.float32)
    content = {"image": volume, "label": (np.indices(volume.shape).std(axis=0) < 20).astype(np.uint8)}
    marks: list[float] = []
    update, start = torch.optim.SGD.step, peak_mib(reset=True)

    def step(optimizer: torch.optim.SGD) -> None:
        update(optimizer)
        marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("code").symlink_to(reference / "code")
        Path("train.list").write_text("case\n" * 80, encoding="ascii")
        words = ["train_ss_3d.py", "--root_path", ".", "--max_iteration", str(steps + 1)]
        with (
            reference_modules(reference / "code") as stand_ins,
            patch.object(sys, "argv", words),
            patch.object(torch.optim.SGD, "step", step),
            patch("torch.utils.data.DataLoader", lambda *args, **kw: DataLoader(*args, **kw | {"num_workers": 0})),
        ):
            stand_ins["h5py"].File = lambda *_: content
            stand_ins["torchvision"].transforms.Compose = Compose
            runpy.run_path(str(reference / "code/train_ss_3d.py"), run_name="__main__")
    return {"seconds": statistics.median(np.diff(marks)), "mebibytes": peak_mib() - start}


def compile(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a pass of `VNet`, plain and compiled in place, and count the calls of a hook on `decoder.stage1`."""
    return [in_process(_compared, options)]


def _compared(options: argparse.Namespace) -> dict[str, Any]:
    plain = place(VNet(base_filters=8, norm="instance"), "cpu")
    compiled, images, hook_calls = copy.deepcopy(plain), torch.randn(2, 1, *options.patch), 0
    compiled.compile()

    def pass_of(network: nn.Module) -> float:
        start = time.process_time()
        network.zero_grad()
        network(images).square().mean().backward()
        return time.process_time() - start

    def count(*_: Any) -> None:
        nonlocal hook_calls
        hook_calls += 1

    first = pass_of(compiled)
    seconds = [(pass_of(plain), pass_of(compiled)) for _ in range(options.repeats + 1)][1:]
    before, after = (statistics.median(column) for column in zip(*seconds, strict=True))
    handle = compiled.get_submodule("decoder.stage1").register_forward_hook(count)
    compiled(images)
    handle.remove()
    return {
        "plain s": round(before, 3),
        "compiled, times as fast": round(before / after, 2),
        "compilation, in passes": round(first / before),
        "calls of a hook": hook_calls,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser, options = command_line(__doc__, (settings, growth, authors, compile))
    options["settings"]("settings", nargs="*", help="overrides to measure, each beside the settings without it")
    options["growth"]("setting", help="key of the configuration, such as roi_size or batch_labelled")
    options["growth"]("values", nargs="+", help="its values, such as [32,32,32] or 4")
    for name in ("settings", "growth"):
        options[name]("--base", default="", help="overrides of all, such as roi_size=[48,48,48],batch_labelled=2")
        options[name]("--config", nargs="*", default=(), help="files in configs/ after train.yaml")
    options["authors"]("--reference", type=Path, required=True, help="folder of the checkout of SS-Net")
    for name, steps, repeats in (("settings", 4, 3), ("growth", 4, 3), ("authors", 2, 2)):
        options[name]("--steps", type=int, default=steps, help="steps of a run, after one that is not counted")
        options[name]("--repeats", type=int, default=repeats, help="runs of each")
    options["compile"]("--patch", type=int, nargs=3, default=(48, 48, 32), help="voxels along each axis")
    options["compile"]("--repeats", type=int, default=7)
    torch.set_num_threads(1)
    run_measurement(parser, options, argv)


if __name__ == "__main__":
    main()
