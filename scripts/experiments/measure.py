# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the measurements of time and memory: calls in turn, separate processes, training runs, results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import psutil
import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from scripts.experiments.figures import draw_table
from scripts.files import write_text
from scripts.training.run_record import git_state, versions

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

Rows = Iterable[dict[str, Any]]
"""Rows of a table, with equal keys."""

EVERYTHING = {
    "restart": 1,  # making pseudo-labels of whole volumes is not part of a step
    "unlabelled_start": 0.0,
    "terms::contrast_unlabelled::confidence": 0.0,
    "memory_updater::confidence": 0.0,
    "memory_updater::only_correct": False,
}
"""Overrides with which all voxels are used from the first step, as in a trained network; otherwise few would be."""


def median_seconds(
    calls: Mapping[str, Callable[[], object]], repeats: int, processor: bool = False, warm_up: int = 1
) -> dict[str, float]:
    """Return the median time of each call in seconds. Calls alternate (A B A B), so that other work slows all alike.

    Args:
        calls: the calls to measure, by name.
        repeats: number of counted turns.
        processor: whether to measure processor time instead of wall time; other work on the machine affects it less.
        warm_up: number of turns before them that are not counted.
    """
    clock = time.process_time if processor else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + warm_up):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return {name: statistics.median(measured[warm_up:]) for name, measured in times.items()}


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a separate process with one thread, so that its peak memory can be measured."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_single_threaded, function, *args).result()


def _single_threaded(function: Callable[..., Any], *args: Any) -> Any:
    torch.set_num_threads(1)
    return function(*args)


def peak_mib(process: int | None = None, reset: bool = False) -> float:
    """Return the peak memory of a running process in MiB; 0 if it has ended.

    `resource.getrusage` cannot be used, because a child starts with the peak of its parent, and it counts all children
    together.

    Args:
        process: process id; `None` for this process.
        reset: whether to start a new measurement of this process.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path(f"/proc/{process or os.getpid()}/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0) / 2**10


def training_run(output: Path, files: Iterable[str] = (), **overrides: Any) -> ConfigWorkflow:
    """Return a training workflow that is ready to run, from `configs/train.yaml` and other files of `configs`.

    Args:
        output: output folder.
        files: config files, relative to `configs`.
        overrides: overrides of the configuration; paths may be `Path` objects.
    """
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in ("train.yaml", *files)],
        workflow_type="train",
        bundle_root=str(ROOT),
        output_dir=str(output),
        ckpt_dir=str(output / "models"),
        **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
    )
    workflow.initialize()
    return workflow


@contextmanager
def reference_modules(folder: Path) -> Iterator[dict[str, MagicMock]]:
    """Make modules of SS-Net's authors importable, and let them compute on the CPU.

    Packages that are used only to read files, draw or compute metrics need not be installed.

    Args:
        folder: `code` of a checkout of https://github.com/ycwu1997/SS-Net.

    Returns:
        The mock objects for these packages, by name.
    """
    packages = ("h5py", "medpy", "skimage", "skimage.measure", "tensorboardX", "torchvision")
    stand_ins = {name: MagicMock() for name in packages}
    sys.modules.update(stand_ins)  # patch.dict would also remove modules that torch imports meanwhile
    try:
        with (
            patch.object(sys, "path", [str(folder), *sys.path]),
            patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
            patch.object(nn.Module, "cuda", lambda module: module),
            patch.object(np, "int", int, create=True),
        ):
            yield stand_ins
    finally:
        theirs = [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]
        for name in (*stand_ins, *theirs):
            del sys.modules[name]


def size_text(shape: Sequence[int]) -> str:
    """Format `(20, 18, 16)` as `20 x 18 x 16`."""
    return " x ".join(map(str, shape))


def command_line(doc: str | None, commands: Sequence[Callable]) -> tuple[argparse.ArgumentParser, dict[str, Callable]]:
    """Make a parser with a sub-command named after each function; also return functions that add options to them.

    Args:
        doc: docstring of the module.
        commands: functions that take the parsed options.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    options: dict[str, Callable] = {}
    for function in commands:
        name = function.__name__.replace("_", "-")
        command = subparsers.add_parser(name, help=str(function.__doc__).splitlines()[0], description=function.__doc__)
        command.set_defaults(function=function)
        options[name] = command.add_argument
    return parser, options


def run_measurement(
    parser: argparse.ArgumentParser, options: Mapping[str, Callable], argv: Sequence[str] | None = None
) -> None:
    """Run the selected command, print its rows as they come, and write them to the requested files.

    Args:
        parser: sets `function` for each command, which takes the parsed options and returns or yields rows with equal
            keys.
        options: the functions that add options to the commands.
        argv: arguments of the command line.
    """
    for option in options.values():
        option(
            "--json", type=Path, metavar="FILE", help="also write the table here, with machine, versions and command"
        )
        option("--figure", type=Path, metavar="FILE", help="also draw the table into this .png, .svg or .pdf")
    given = parser.parse_args(argv)
    began, load = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
    rows = print_table(given.function(given))
    if given.json:
        module = f"scripts.experiments.{Path(given.function.__code__.co_filename).stem}"
        record = {
            "command": shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]),
            "began": began,
            "load": round(load, 2),
            "repeats": getattr(given, "repeats", 1),
            "machine": machine(),
            "versions": versions() | (git_state(ROOT) or {}),
            "rows": rows,
        }
        write_text(given.json, json.dumps(record, indent=2) + "\n")
    if given.figure:
        draw_table(rows, given.figure)


def print_table(rows: Rows) -> list[dict[str, Any]]:
    """Print rows with equal keys as a Markdown table, each as soon as it comes, and return them."""
    printed: list[dict[str, Any]] = []
    for row in rows:
        if not printed:
            print("| " + " | ".join(row) + " |")
            print("|" + " --- |" * len(row))
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
        printed.append(row)
    return printed


def machine() -> dict[str, Any]:
    """Return CPU model, cores of this process, threads of torch, memory in GiB, and the GPU (`None` without one)."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
