# SPDX-License-Identifier: Apache-2.0
"""Measure how long training waits for data, and what augmentation costs beside MONAI's.

    python -m scripts.experiments.waiting share --dataset left_atrium --dataset_dir FOLDER
    python -m scripts.experiments.waiting disk
    python -m scripts.experiments.waiting augmentation

`share` trains the default method on the demo or another dataset. `disk` trains it on generated CT volumes that are kept
on disk, or read and resampled at each visit; their files leave the page cache after each step, as those of a cohort
larger than the memory would. Variants are measured in turn, and tables show medians; `--json FILE` writes the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
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
from scripts.experiments.load import CONFIGS, ROOT, median_seconds, write_volumes
from scripts.experiments.starting import machine_and_versions

FIRST = 4
"""Steps that are not counted: files are computed at the first visits, and the network's first steps are slower."""

CLASSES = 4


def share(options: argparse.Namespace) -> None:
    """Share of the time of training that is spent waiting for the next batch, by the number of loader processes."""
    with tempfile.TemporaryDirectory() as folder:
        overrides: dict[str, Any] = {"dataset_dir": options.dataset_dir or ensure_demo_dataset(Path(folder, "demo"))}
        if options.dataset != "demo":
            overrides["files"] = [f"datasets/{options.dataset}.yaml"]
        _compare({options.dataset: overrides}, options, Path(folder))


def disk(options: argparse.Namespace) -> None:
    """The same for generated CT volumes: `cache: disk` beside reading them at each visit."""
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
        _compare(runs, options, Path(folder))


def _compare(runs: dict[str, dict[str, Any]], options: argparse.Namespace, folder: Path) -> None:
    """Train with the overrides of each run and each number of loader processes, and print a table."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.repeats):
        for name, overrides in runs.items():
            for workers in options.workers:
                output = folder / f"{name}, {workers}, {number}"
                pair = _train(output, options.steps, **{**overrides, "num_workers": workers})
                measured.setdefault(f"{name} | {workers}", []).append(pair)
    medians = {
        name: [statistics.median(values) for values in zip(*pairs, strict=True)] for name, pairs in measured.items()
    }
    first = next(iter(medians.values()))[1]
    print("| dataset | num_workers | waiting for data, % of the time | time per step, relative |\n|---|---|---|---|")
    for name, (waiting, step) in medians.items():
        print(f"| {name} | {100 * waiting:.1f} | {step / first:.2f} |")
    _write(options.json, {"share and seconds per step": measured})


def _train(
    output: Path, steps: int, files: Sequence[str] = (), forget: bool = False, **overrides: Any
) -> tuple[float, float]:
    """Train; return the share of the time after `FIRST` steps that is spent waiting for a batch, and seconds per step.

    Args:
        output: folder of the run.
        steps: steps that are counted.
        files: config files after `configs/train.yaml`.
        forget: whether the volumes leave the page cache after each step.
        overrides: of the configuration.
    """
    settings = {
        "bundle_root": str(ROOT), "output_dir": str(output), "ckpt_dir": str(output / "models"),
        "max_steps": FIRST + steps, "val_interval": FIRST + steps + 1, "restart": 1, "unlabelled_start": 0.0,
        **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
    }  # fmt: skip
    files = [str(CONFIGS / name) for name in ("train.yaml", *files)]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", **settings)
    workflow.initialize()
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
    """Let the files of some folders leave the page cache, so that they are read from the disk again."""
    for file in (file for folder in folders for file in folder.rglob("*") if file.suffix in (".gz", ".pt")):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def augmentation(options: argparse.Namespace) -> None:
    """Time of this project's random transforms beside those of MONAI that they replace, with one thread."""
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
    print("| | ours, ms per patch | MONAI, ms per patch | times as fast |\n|---|---|---|---|")
    seconds = {}
    for name, (first, second, item) in pairs.items():
        seconds[name] = median_seconds([partial(first, item), partial(second, item)], options.repeats)
        our, their = seconds[name]
        print(f"| {name} | {1000 * our:.1f} | {1000 * their:.1f} | {their / our:.1f} |", flush=True)
    _write(options.json, {"patch": patch, "seconds of ours and of MONAI's": seconds})


def _write(file: Path | None, results: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps({**machine_and_versions(), **results}, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, repeats in ((share, 3), (disk, 1), (augmentation, 15)):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        option = command.add_argument
        option("--repeats", type=int, default=repeats)
        option("--json", type=Path, metavar="FILE", help="write all numbers, machine and versions there")
        if function is not augmentation:
            option("--workers", nargs="+", default=["auto", "0"], help="values of num_workers")
            option("--steps", type=int, default=10, help="steps that are counted")
        if function is share:
            option("--dataset", default="demo", help="name of a file in configs/datasets")
            option("--dataset_dir", type=Path, metavar="FOLDER", help="its folder; not needed for the demo")
        else:
            option("--shape", nargs=3, type=int, default=[256, 256, 150], help="voxels of a volume")
            option("--roi_size", nargs=3, type=int, default=[96, 80, 48], help="voxels of a patch")
        if function is disk:
            option("--cases", type=int, default=8, help="volumes, half of them labelled")
    options = parser.parse_args(argv)
    options.function(options)


if __name__ == "__main__":
    main()
