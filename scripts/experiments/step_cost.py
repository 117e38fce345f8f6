# SPDX-License-Identifier: Apache-2.0
r"""Measure time and peak memory of a training step with different settings.

    python -m scripts.experiments.step_cost settings --base norm=instance \
        accumulation_steps=2 train::inferer::activation_checkpointing=true
    python -m scripts.experiments.step_cost compile

`settings` trains for a few steps with `configs/train.yaml` as it is and with each given override (several are joined by
a comma outside of brackets), in turn, each time in a process of its own. All voxels and cases take part from the first
step. `compile` compares a forward and backward pass of `VNet` with and without torch.compile, and counts the calls of a
forward hook. Processor time is measured, which other work on the machine affects less than wall time. All compute on
the CPU in one thread.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import nn

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.load import CONFIGS
from scripts.experiments.loss_cost import EVERYTHING, in_process, peak_mib, print_table
from scripts.networks.vnet import VNet
from scripts.training.precision import place


def parse_settings(text: str) -> dict[str, Any]:
    """Overrides from `key=value,key=value`; values are YAML.

    >>> parse_settings("roi_size=[48,48,32],accumulation_steps=2")
    {'roi_size': [48, 48, 32], 'accumulation_steps': 2}
    """
    pairs = [pair.split("=", 1) for pair in re.split(r",(?=[\w:]+=)", text) if pair]
    return {key: yaml.safe_load(value) for key, value in pairs}


def measure_settings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and peak memory of a step of the default method, relative to the settings without an override."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *options.settings)}
    with tempfile.TemporaryDirectory() as folder:
        ensure_demo_dataset(Path(folder, "demo"))
        for _ in range(options.repeats):
            for name, measured in rows.items():
                overrides = {**parse_settings(options.base), **parse_settings(name)}
                measured.append(in_process(_measured_run, options, overrides, folder))
    table = []
    for name, measured in rows.items():
        values = {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        first = {key: statistics.median(row[key] for row in rows[""]) for key in values}
        table.append({
            "settings": name or options.base or "as they are",
            "step s": round(values["seconds"], 3),
            "time, relative": round(values["seconds"] / first["seconds"], 2),
            "memory MiB": round(values["mebibytes"]),
            "memory, relative": round(values["mebibytes"] / first["mebibytes"], 2),
        })  # fmt: skip
    return table


def _measured_run(options: argparse.Namespace, overrides: dict[str, Any], folder: str) -> dict[str, float]:
    """Median processor seconds of a step after the first, and peak memory above that before the first."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in ("train.yaml", *options.config)],
        workflow_type="train",
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(Path(folder, "demo")),
        output_dir=str(Path(folder, "out")),
        ckpt_dir=str(Path(folder, "models")),
        **{"max_steps": options.steps + 1, "val_interval": 10**6, "num_workers": 0, **EVERYTHING, **overrides},
    )
    workflow.initialize()
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


def measure_compile(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward pass of `VNet` plain and compiled in place, with the calls of a hook on `decoder.stage1`."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("settings", help=str(measure_settings.__doc__).splitlines()[0])
    command.set_defaults(measure=measure_settings)
    command.add_argument("settings", nargs="*", help="overrides to measure, each beside the settings without it")
    command.add_argument("--base", default="", help="overrides of all, such as roi_size=[48,48,48],batch_labelled=2")
    command.add_argument("--config", nargs="*", default=(), help="files in configs/ after train.yaml")
    command.add_argument("--steps", type=int, default=4, help="steps of a run, after one that is not counted")
    command.add_argument("--repeats", type=int, default=3, help="runs of each")
    command = commands.add_parser("compile", help=str(measure_compile.__doc__).splitlines()[0])
    command.set_defaults(measure=measure_compile)
    command.add_argument("--patch", type=int, nargs=3, default=(48, 48, 32), help="voxels along each axis")
    command.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)
    print_table(options.measure(options))


if __name__ == "__main__":
    main()
