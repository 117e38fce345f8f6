# SPDX-License-Identifier: Apache-2.0
"""Measure the time and memory that commands take under load, on generated data.

    python -m scripts.experiments.load large-volume --shape 512 512 800
    python -m scripts.experiments.load many-volumes --volumes 500 --labelled 250
    python -m scripts.experiments.load many-checks --cases 250 1000
    python -m scripts.experiments.load many-evaluations --cases 250 1000
    python -m scripts.experiments.load long-training --steps 300 3000 --workers 0 2
    python -m scripts.experiments.load patch-cost --roi_size 48 48 32

The first four run the real command (inference, new-dataset, check_data, evaluating) in a separate process. Networks
have random weights, which cost as much time as trained ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from nibabel.openers import Opener
from torch import nn

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.measure import (
    CONFIGS,
    ROOT,
    Rows,
    command_line,
    median_seconds,
    peak_mib,
    run_measurement,
    size_text,
    training_run,
)
from scripts.networks.vnet import VNet
from scripts.training.precision import place

STRUCTURES = ("first", "second", "third")
SPACING = (0.8, 0.8, 2.5)
WINDOW = 50
"""Steps over which the memory of a training run is averaged, because allocators keep and release blocks constantly."""

MEMORY, WORKERS_MEMORY = "memory MiB", "in workers MiB"

TOLERANCE = 0.02
"""Maximum relative change of memory for which `long-training` succeeds."""


def measure_command(words: Sequence[str]) -> dict[str, float]:
    """Run `python -m WORDS` in the bundle's folder; return its processor time (`time s`) and peak memory (`peak MiB`).

    Other work on the machine affects processor time less than wall time.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    command = [sys.executable, "-m", *words]
    start, peak = os.times(), 0.0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        peak = max(peak, peak_mib(process.pid))
        time.sleep(0.1)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    end = os.times()
    seconds = end.children_user + end.children_system - start.children_user - start.children_system
    return {"time s": round(seconds, 1), "peak MiB": round(peak)}


# ------------------------------------------------------------------ generated data


def write_volumes(folder: Path, volumes: int, labelled: int, shape: Sequence[int]) -> list[str]:
    """Write int16 volumes of noise to `images/`, and labels of three boxes for the first `labelled` to `labels/`.

    Returns:
        The file names, the same in both folders.
    """
    noise = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    label = np.zeros(shape, np.uint8)
    for value, start in enumerate((0.1, 0.4, 0.7), 1):
        label[tuple(slice(int(n * start), int(n * (start + 0.2))) for n in shape)] = value
    names = [f"case_{number:03d}.nii.gz" for number in range(volumes)]
    for number, name in enumerate(names):
        image = noise + np.int16(number % 50)
        image[0, 0, 0] = number  # so that no two images are identical
        _write(folder / "images" / name, image, SPACING)
        if number < labelled:
            _write(folder / "labels" / name, label, SPACING)
    return names


def _write(path: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Opener.default_compresslevel = 1  # otherwise half of the time would be spent compressing noise
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def write_dataset(folder: Path, cases: int, shape: Sequence[int], section: str) -> None:
    """Write labelled volumes and their `dataset.json`.

    `section` gets `cases` cases. If it is not `training`, a training case is added.
    """
    names = write_volumes(folder, cases + (section != "training"), cases + 1, shape)
    entries = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    lists = {"training": entries} if section == "training" else {"training": entries[:1], section: entries[1:]}
    (folder / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")


def write_large_volume(path: Path, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Write an int16 volume of a bright ball in noise, generated plane by plane."""
    plane = np.random.default_rng(0).integers(-1000, 0, shape[:2], dtype=np.int16)
    volume = np.empty(shape, np.int16, order="F")
    x, y = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    for k, z in enumerate(np.linspace(-1, 1, shape[2])):
        volume[..., k] = np.roll(plane, k, axis=0) + np.where(x**2 + y**2 + z**2 < 0.5, 1000, 0).astype(np.int16)
    _write(path, volume, spacing)


def write_weights(path: Path, width: int) -> list[str]:
    """Write random weights of the demo's network with this first-stage width, and return the option that sets it."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "inference.yaml"), str(CONFIGS / "datasets/demo.yaml")])
    widths = [width, 2 * width, 4 * width, 8 * width]
    parser.update({"widths": widths})
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return ["--widths", str(widths)]


# ------------------------------------------------------------------ commands in separate processes


def large_volume(options: argparse.Namespace) -> Rows:
    """Inference of one large CT-like volume with the demo's network, spacing and window."""
    folder = options.folder
    write_large_volume(folder / "scan.nii", options.shape, options.voxel)
    widths = write_weights(folder / "models/model.pt", options.width)
    files = [str(CONFIGS / "inference.yaml"), str(CONFIGS / "datasets/demo.yaml")]
    cost = measure_command(
        [
            *("monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(ROOT)),
            *("--dataset_dir", str(folder / "scan.nii"), "--ckpt_dir", str(folder / "models")),
            *("--output_dir", str(folder / "out"), "--device", options.device),
            *widths,
        ]
    )
    yield {"voxels": size_text(options.shape), **cost}


def many_volumes(options: argparse.Namespace) -> Rows:
    """`new-dataset` on a folder of many volumes, without writing files."""
    folder = options.folder
    write_volumes(folder / "data", options.volumes, options.labelled, options.shape)
    words = ["scripts", "new-dataset", str(folder / "data"), "--name", "many", "--dry_run"]  # do not remember the name
    cost = measure_command(words)
    numbers = {"volumes": options.volumes, "labelled": options.labelled, "voxels": size_text(options.shape)}
    yield numbers | cost


def many_checks(options: argparse.Namespace) -> Rows:
    """`check_data` on few and on many cases."""
    folder = options.folder
    for cases in options.cases:
        data = folder / str(cases)
        write_dataset(data, cases, options.shape, "training")
        cost = measure_command(
            [
                *_train_command("check_data", data, folder / "out"),
                *("--label_names", str(["background", *STRUCTURES]), "--spacing", str([*SPACING])),
                *("--roi_size", str(options.shape)),
            ]
        )
        yield {"cases": cases, "voxels": size_text(options.shape), **cost}


def many_evaluations(options: argparse.Namespace) -> Rows:
    """`evaluating` on few and on many test cases."""
    folder = options.folder
    widths = write_weights(folder / "models/model.pt", options.width)
    for cases in options.cases:
        data = folder / str(cases)
        write_dataset(data, cases, options.shape, "test")
        cost = measure_command(
            [
                *_train_command("evaluating", data, folder / "out", "evaluate.yaml"),
                *("--labelled_cases", "1", "--ckpt_dir", str(folder / "models")),
                *("--device", "cpu"),
                *widths,
            ]
        )
        rows = len((folder / "out/metrics.csv").read_text(encoding="utf-8").splitlines()) - 1
        if rows != cases * len(STRUCTURES):
            raise RuntimeError(f"{cases} cases gave {rows} rows instead of {cases * len(STRUCTURES)}.")
        yield {"cases": cases, "voxels": size_text(options.shape), **cost}


def _train_command(run_id: str, data: Path, output: Path, *more_files: str) -> list[str]:
    files = [str(CONFIGS / name) for name in ("train.yaml", *more_files)]
    return [
        *("monai.bundle", "run", run_id, "--config_file", str(files), "--bundle_root", str(ROOT)),
        *("--dataset_dir", str(data), "--output_dir", str(output)),
    ]


# ------------------------------------------------------------------ measurements within a process


def long_training(options: argparse.Namespace) -> Rows:
    """Memory, open files and threads after a few hundred and after a few thousand steps of a small training run.

    The run validates and saves a checkpoint every 100 steps. The command exits with 1 if memory differs by more than
    2 %, or if the number of open files, threads or processes differs.
    """
    folder = options.folder
    demo = ensure_demo_dataset(folder / "demo", num_training=6, num_validation=1, num_test=1, shape=(32, 28, 20))
    different = []
    for workers in options.workers:
        # Each run has its own process, so that it does not affect the next one.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            rows = pool.submit(_train, demo, folder / f"run_{workers}", options.steps, workers).result()
        for step, row in zip(options.steps, rows, strict=True):
            yield {"workers": workers, "step": step} | {name: round(value, 1) for name, value in row.items()}
        different += [f"{workers} workers: {words}" for words in grown(rows[0], rows[-1])]
    if different:
        sys.exit(f"The first and the last step differ: {'; '.join(different)}.")


def _train(demo: Path, folder: Path, steps: Sequence[int], workers: int) -> list[dict[str, float]]:
    """Train up to the last of `steps`, and return memory in MiB and the counts of `handles` at each of them."""
    torch.set_num_threads(1)
    workflow = training_run(
        folder, dataset_dir=demo, num_workers=workers,
        roi_size=[32, 32, 16], spacing=[3.0, 3.0, 4.0], widths=[4, 8, 16, 32],
        precision="fp32", device="cpu",
        batch_labelled=1, batch_unlabelled=1, restart=1, unlabelled_start=0.0,
        max_steps=max(steps), val_interval=100, save_interval=100,
    )  # fmt: skip
    samples: list[tuple[float, float]] = []
    rows = []

    def sample(engine: Engine) -> None:
        step = engine.state.iteration
        if not any(mark - WINDOW < step <= mark for mark in steps):
            samples.clear()
            return
        samples.append(memory_mib())
        if step in steps:
            memory, workers_memory = map(statistics.mean, zip(*samples, strict=True))
            rows.append({MEMORY: memory, WORKERS_MEMORY: workers_memory, **handles()})

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, sample)
    workflow.run()
    workflow.finalize()
    return rows


def memory_mib() -> tuple[float, float]:
    """Memory of this process, and memory of its children that no other process shares, both in MiB."""
    process = psutil.Process()
    own = [child.memory_full_info().uss for child in process.children(recursive=True)]
    return process.memory_info().rss / 2**20, sum(own) / 2**20


def handles() -> dict[str, int]:
    """Number of open files, threads and processes of this process and its children together."""
    process = psutil.Process()
    family = [process, *process.children(recursive=True)]
    files, threads = sum(p.num_fds() for p in family), sum(p.num_threads() for p in family)
    return {"open files": files, "threads": threads, "processes": len(family)}


def grown(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """Describe each difference between the first and the last row of a run that exceeds its limit."""
    words = [f"{name} {first[name]} and {last[name]}" for name in handles() if first[name] != last[name]]
    before, after = (row[MEMORY] + row[WORKERS_MEMORY] for row in (first, last))
    if abs(after - before) > TOLERANCE * before:
        words.append(f"memory {before:.1f} and {after:.1f} MiB")
    return words


def patch_cost(options: argparse.Namespace) -> Rows:
    """Time of a patch in training and in inference, by the number of patches in a batch and the memory layout.

    On a CPU, torch uses a slower implementation for the convolution of small layers with a batch size of one
    (`aten::slow_conv3d_forward` in its profiler), so that two patches can cost less than one. The two layouts are
    measured in turn.
    """
    plain = VNet(base_filters=options.base_filters, norm=options.norm)
    networks = {"contiguous": plain, "channels-last": place(copy.deepcopy(plain), "cpu")}
    for size in options.batches:
        batch = torch.randn(size, 1, *options.roi_size)
        calls = {layout: partial(_train_once, each, batch) for layout, each in networks.items()}
        training = median_seconds(calls, options.repeats)
        with torch.no_grad():
            calls = {layout: partial(each, batch) for layout, each in networks.items()}
            inference = median_seconds(calls, options.repeats)
        for layout in networks:
            row: dict[str, Any] = {"batch": size, "layout": layout}
            for name, seconds in (("training", training[layout]), ("inference", inference[layout])):
                row |= {f"{name} s": round(seconds, 3), f"{name}, per patch s": round(seconds / size, 3)}
            yield row


def _train_once(network: nn.Module, batch: torch.Tensor) -> None:
    network(batch).mean().backward()


# ------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    commands = (large_volume, many_volumes, many_checks, many_evaluations, long_training, patch_cost)
    parser, options = command_line(__doc__, commands)
    option = options["large-volume"]
    option("--shape", nargs=3, type=int, default=[512, 512, 800], help="voxels")
    option("--voxel", nargs=3, type=float, default=[0.8, 0.8, 0.8], help="size of a voxel in mm")
    option("--width", type=int, default=16, help="channels of the first stage; each next one doubles them")
    option("--device", default="cpu")
    option = options["many-volumes"]
    option("--volumes", type=int, default=500)
    option("--labelled", type=int, default=250)
    option("--shape", nargs=3, type=int, default=[192, 160, 96], help="voxels of each volume")
    option = options["many-checks"]
    option("--cases", nargs="+", type=int, default=[100, 1000])
    option("--shape", nargs=3, type=int, default=[64, 64, 48], help="voxels of each case")
    option = options["many-evaluations"]
    option("--cases", nargs="+", type=int, default=[250, 1000])
    option("--shape", nargs=3, type=int, default=[48, 48, 24], help="voxels of each case")
    option("--width", type=int, default=4)
    option = options["long-training"]
    option("--steps", nargs="+", type=int, default=[300, 3000], help="steps to measure at, ascending")
    option("--workers", nargs="+", type=int, default=[0, 2], help="numbers of loader processes, one run for each")
    option = options["patch-cost"]
    option("--roi_size", nargs=3, type=int, default=[48, 48, 32])
    option("--base_filters", type=int, default=8)
    option("--norm", default="instance")
    option("--batches", nargs="+", type=int, default=[1, 2, 4])
    option("--repeats", type=int, default=7)
    with tempfile.TemporaryDirectory() as folder:
        parser.set_defaults(folder=Path(folder))
        run_measurement(parser, options, argv)


if __name__ == "__main__":
    main()
