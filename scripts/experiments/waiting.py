# SPDX-License-Identifier: Apache-2.0
"""Measure how long training waits for data, and what augmentation and threads cost.

    python -m scripts.experiments.waiting share --dataset left_atrium --dataset_dir FOLDER
    python -m scripts.experiments.waiting disk
    python -m scripts.experiments.waiting augmentation
    python -m scripts.experiments.waiting threads

`share` trains the default method on the demo or another dataset. `disk` trains it on generated CT volumes that are
cached on disk, or read and resampled every time; their files are removed from the page cache after each step, as would
happen with a dataset larger than the memory. `augmentation` compares the random transforms with those of MONAI.
`threads` compares numbers of threads for a training step, alone and next to other work. Variants are measured in turn,
and tables show medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
)

from scripts.data.demo import ensure_demo_dataset
from scripts.data.intensities import RandBlurd, RandContrastd, RandNoised, RandSmoothFieldd
from scripts.data.patches import RandPatchd
from scripts.experiments.load import write_volumes
from scripts.experiments.measure import ROOT, Rows, command_line, median_seconds, run_measurement, training_run

FIRST = 4
"""Number of first steps that are not counted, because cache files are written and the network is slower."""

CLASSES = 4


def share(options: argparse.Namespace) -> Rows:
    """Share of the training time that is spent waiting for the next batch, by the number of loader processes."""
    with tempfile.TemporaryDirectory() as folder:
        overrides: dict[str, Any] = {"dataset_dir": options.dataset_dir or ensure_demo_dataset(Path(folder, "demo"))}
        if options.dataset != "demo":
            overrides["files"] = [f"datasets/{options.dataset}.yaml"]
        return _compare({options.dataset: overrides}, options, Path(folder))


def disk(options: argparse.Namespace) -> Rows:
    """Compare `cache: disk` with reading the files every time, for generated CT volumes."""
    with tempfile.TemporaryDirectory() as folder:
        data, cases, labelled = Path(folder, "ct"), options.cases, options.cases // 2
        names = write_volumes(data, cases, labelled, options.shape)
        lists = {
            "training": [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names[:labelled]],
            "unlabeled": [{"image": f"images/{name}"} for name in names[labelled:]],
        }
        (data / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
        settings = {
            "dataset_name": "ct", "dataset_dir": data, "labelled_cases": None, "forget": True,
            "spacing": [1.0, 1.0, 2.5], "roi_size": options.roi_size, "batch_labelled": 2,
        }  # fmt: skip
        read = {
            f"train::{key}": {"_target_": "Dataset", "data": f"$@cases.{stream}", "transform": "@train::preprocessing"}
            for key, stream in (("dataset", "labelled"), ("unlabelled_dataset", "unlabelled"))
        }
        runs = {"CT, cache: disk": settings | {"cache": "disk"}, "CT, read at each visit": settings | read}
        return _compare(runs, options, Path(folder))


def _compare(runs: dict[str, dict[str, Any]], options: argparse.Namespace, folder: Path) -> Rows:
    """Train with the overrides of each run and each number of loader processes; yield a row for each."""
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(options.repeats):
        for name, overrides in runs.items():
            for workers in options.workers:
                output = folder / f"{name}, {workers}, {number}"
                pair = _train(output, options.steps, **{**overrides, "num_workers": workers})
                measured.setdefault((name, workers), []).append(pair)
    medians = {
        name: [statistics.median(values) for values in zip(*pairs, strict=True)] for name, pairs in measured.items()
    }
    _, first = next(iter(medians.values()))
    return [
        {
            "dataset": name,
            "num_workers": workers,
            "waiting for data %": round(100 * waiting, 1),
            "time per step, relative": round(step / first, 2),
        }
        for (name, workers), (waiting, step) in medians.items()
    ]


def _train(
    output: Path, steps: int, files: Sequence[str] = (), forget: bool = False, **overrides: Any
) -> tuple[float, float]:
    """Train; return the share of time spent waiting for a batch, and seconds per step, both after `FIRST` steps.

    Args:
        output: folder of the run.
        steps: number of counted steps.
        files: config files after `configs/train.yaml`.
        forget: whether to remove the volumes from the page cache after each step.
        overrides: overrides of the configuration.
    """
    settings = {
        "max_steps": FIRST + steps, "val_interval": FIRST + steps + 1, "restart": 1, "unlabelled_start": 0.0,
        **overrides,
    }  # fmt: skip
    workflow = training_run(output, files, **settings)
    times: list[tuple[float, ...]] = []
    marks: list[float] = []

    def mark() -> None:
        marks.append(time.perf_counter())

    def end() -> None:
        times.append((*marks, time.perf_counter()))
        marks.clear()
        if forget:
            _forget(Path(str(settings["dataset_dir"])), output)

    workflow.trainer.add_event_handler(Events.GET_BATCH_STARTED, mark)
    workflow.trainer.add_event_handler(Events.GET_BATCH_COMPLETED, mark)
    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
    workflow.run()
    workflow.finalize()
    counted = times[FIRST:]
    total = sum(done - start for start, _, done in counted)
    return sum(ready - start for start, ready, _ in counted) / total, total / steps


def _forget(*folders: Path) -> None:
    """Remove the files of folders from the page cache, so that they are read from the disk again."""
    for file in (file for folder in folders for file in folder.rglob("*") if file.suffix in (".gz", ".pt")):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def augmentation(options: argparse.Namespace) -> Rows:
    """Compare the time of this project's random transforms with the MONAI transforms they replace, with one thread."""
    torch.set_num_threads(1)
    patch = options.roi_size
    volume = {"image": torch.randn(1, *options.shape), "label": torch.randint(CLASSES, (1, *options.shape))}
    volume = ClassesToIndicesd("label", num_classes=CLASSES, max_samples_per_class=10000)(volume)
    small = {"image": torch.randn(1, *patch)}
    keys, blur = ["image", "label"], (0.5, 1.0)
    ours = partial(RandPatchd, keys, patch, prob=1.0, rotate=0.35, scale=0.25, shear=0.1, flip_axes=[0, 1, 2])
    crop = RandCropByLabelClassesd(keys, "label", patch, num_classes=CLASSES, indices_key="label_cls_indices")
    affine = RandAffined(
        keys, prob=1.0, rotate_range=[0.35] * 3, scale_range=[0.25] * 3, shear_range=[0.1] * 3,
        mode=["bilinear", "nearest"], padding_mode="reflection",
    )  # fmt: skip
    theirs = Compose([crop, affine, *(RandFlipd(keys, 0.5, axis) for axis in range(3))])
    pairs: dict[str, tuple[Any, Any, dict]] = {
        "patch, affine, mirror": (ours(), theirs, volume),
        "the same, with elastic deformation only in ours": (ours(elastic_prob=1.0, elastic=0.08), theirs, volume),
        "noise": (RandNoised("image", 1.0, 0.15), RandGaussianNoised("image", 1.0, std=0.15), small),
        "blur": (RandBlurd("image", 1.0, blur), RandGaussianSmoothd("image", blur, blur, blur, prob=1.0), small),
        "gamma": (
            RandContrastd("image", 1.0),
            RandAdjustContrastd("image", prob=1.0, gamma=(0.7, 1.5), retain_stats=True),
            small,
        ),
        "bias field": (
            RandSmoothFieldd("image", 1.0, (0.0, 0.15)),
            RandBiasFieldd("image", prob=1.0, coeff_range=(0.0, 0.15)),
            small,
        ),
    }  # fmt: skip
    rows = []
    for name, (first, second, item) in pairs.items():
        calls = {"ours": partial(first, item), "MONAI": partial(second, item)}
        seconds = median_seconds(calls, options.repeats)
        row = {f"{whose} ms": round(1000 * value, 1) for whose, value in seconds.items()}
        rows.append({"transform": name, **row, "times as fast": round(seconds["MONAI"] / seconds["ours"], 1)})
    return rows


# ------------------------------------------------------------------ threads

THREADS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "{n} threads": {"OMP_NUM_THREADS": "{n}"},
    "{n} threads, PASSIVE": {"OMP_NUM_THREADS": "{n}", "OMP_WAIT_POLICY": "PASSIVE"},
    "{n} threads, spin 10000": {"OMP_NUM_THREADS": "{n}", "GOMP_SPINCOUNT": "10000"},
}
"""Environment variables that `threads` compares; `{n}` is the number of cores."""

BUSY = "beside a busy process"

STEP = """
import statistics, sys, time, torch
from scripts.networks.vnet import VNet
steps, side = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
network = VNet(base_filters=8, norm="instance")
optimizer, batch, times = torch.optim.AdamW(network.parameters()), torch.randn(4, 1, side, side, side), []
for _ in range(steps + 2):
    start = time.perf_counter()
    optimizer.zero_grad()
    network(batch).mean().backward()
    optimizer.step()
    times.append(time.perf_counter() - start)
print(statistics.median(times[2:]))
"""
"""Script that prints the median seconds of a training step of a V-Net with the demo's number of filters."""


def threads(options: argparse.Namespace) -> Rows:
    """Time of a training step, alone and next to a process that keeps one core busy, and its ratio to the first."""
    cores = len(os.sched_getaffinity(0))
    measures = {
        name.format(n=cores): _step_seconds({key: value.format(n=cores) for key, value in variables.items()}, options)
        for name, variables in THREADS.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {"alone": [], BUSY: []} for name in measures}
    for _ in range(options.repeats):
        for where, processes in (("alone", 0), (BUSY, 1)):
            with busy_processes(processes):
                for name, measure in measures.items():
                    seconds[name][where].append(measure())
    medians = {name: {key: statistics.median(values) for key, values in row.items()} for name, row in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"environment": name}
        | {f"{where} s": round(median, 3) for where, median in row.items()}
        | {f"{where}, relative": round(median / first[where], 2) for where, median in row.items()}
        for name, row in medians.items()
    ]


def _step_seconds(environment: Mapping[str, str], options: argparse.Namespace) -> Callable[[], float]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}

    def measure() -> float:
        command = [sys.executable, "-c", STEP, str(options.steps), str(options.side)]
        done = subprocess.run(command, cwd=ROOT, env={**inherited, **environment}, check=True, capture_output=True)
        return float(done.stdout)

    return measure


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run processes that each keep one core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser, options = command_line(__doc__, (share, disk, augmentation, threads))
    for name, repeats in (("share", 3), ("disk", 1), ("augmentation", 15), ("threads", 5)):
        options[name]("--repeats", type=int, default=repeats)
    for name in ("share", "disk", "threads"):
        options[name]("--steps", type=int, default=10, help="steps that are counted")
    for name in ("share", "disk"):
        options[name]("--workers", nargs="+", default=["auto", "0"], help="values of num_workers")
    for name in ("disk", "augmentation"):
        options[name]("--shape", nargs=3, type=int, default=[256, 256, 150], help="voxels of a volume")
        options[name]("--roi_size", nargs=3, type=int, default=[96, 80, 48], help="voxels of a patch")
    options["share"]("--dataset", default="demo", help="name of a file in configs/datasets")
    options["share"]("--dataset_dir", type=Path, metavar="FOLDER", help="its folder; not needed for the demo")
    options["disk"]("--cases", type=int, default=8, help="volumes, half of them labelled")
    options["threads"]("--side", type=int, default=32, help="side of the patches in voxels")
    run_measurement(parser, options, argv)


if __name__ == "__main__":
    main()
