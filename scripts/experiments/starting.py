# SPDX-License-Identifier: Apache-2.0
"""Measure what a run costs before it computes, and what threads cost on shared cores.

    python -m scripts.experiments.starting start-up --other ../before --images SERIES --json start_up.json
    python -m scripts.experiments.starting threads --json threads.json

All variants are measured in turn (A B A B). Seconds are medians; compare ratios, because other work on the machine
lengthens all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "{n} threads": {"OMP_NUM_THREADS": "{n}"},
    "{n} threads, PASSIVE": {"OMP_NUM_THREADS": "{n}", "OMP_WAIT_POLICY": "PASSIVE"},
    "{n} threads, spin 10000": {"OMP_NUM_THREADS": "{n}", "GOMP_SPINCOUNT": "10000"},
}
"""Environments that `threads` compares; `{n}` is the number of cores."""

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
"""A V-Net with the demo's filters: prints the median seconds of a training step."""

Measurement = dict[str, list[float]]


def report(columns: Mapping[str, Measurement], file: Path | None) -> None:
    """Print a Markdown table of medians, each with its ratio to the first row, and write all numbers as JSON."""
    names = list(next(iter(columns.values())))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in names:
        cells = []
        for rows in columns.values():
            median, first = statistics.median(rows[name]), statistics.median(rows[names[0]])
            cells.append(f"{median:.3g} s ({median / first:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")
    if file is not None:
        file.write_text(json.dumps({**machine_and_versions(), "seconds": columns}, indent=1) + "\n")


def machine_and_versions() -> dict[str, dict[str, Any]]:
    """What a measurement depends on, for its JSON file."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    machine = {"processor": processor, "cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}
    return {"machine": machine, "versions": {name: version(name) for name in ("torch", "monai", "pytorch-ignite")}}


# ------------------------------------------------------------------ start-up


def start_up(options: argparse.Namespace) -> None:
    """Wall and processor time of a one-step run of the demo, whose volumes exist, and of its import of MONAI."""
    checkouts = {"this": ROOT} | ({"other": options.other.resolve()} if options.other else {})
    with tempfile.TemporaryDirectory() as folder:
        # The first call writes the demo and Python's cached bytecode.
        commands = {
            f"{words[0]}, {name}": (root, [*words[1], *_options(Path(folder))])
            for name, root in checkouts.items()
            for words in (
                ("monai.bundle run", ["-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml"]),
                ("front door", ["-m", "scripts", "train"]),
            )
        }
        if options.images:
            words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
            words += ["--dataset_dir", str(options.images.resolve()), "--output_dir", str(Path(folder, "inference"))]
            commands |= {f"inference, {name}": (root, words) for name, root in checkouts.items()}
        commands["import monai.bundle"] = (ROOT, ["-c", "import monai.bundle"])
        for root, words in commands.values():
            run(root, words)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                rows[name].append(run(*command))
    report({
        "wall": {name: [wall for wall, _ in pairs] for name, pairs in rows.items()},
        "processor": {name: [processor for _, processor in pairs] for name, pairs in rows.items()},
    }, options.json)  # fmt: skip


def _options(folder: Path) -> list[str]:
    places = {"dataset_dir": "demo", "output_dir": "out", "ckpt_dir": "models"}
    given = [word for key, name in places.items() for word in (f"--{key}", str(folder / name))]
    return ["--max_steps", "1", *given]


def run(root: Path, words: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time in seconds of `python WORDS` in a folder, with one thread.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], cwd=root, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ------------------------------------------------------------------ threads


def threads(options: argparse.Namespace) -> None:
    """Time of a training step alone and beside another process that keeps one core busy."""
    cores = len(os.sched_getaffinity(0))
    variants = {
        name.format(n=cores): {key: value.format(n=cores) for key, value in environment.items()}
        for name, environment in THREADS.items()
    }
    measures = {name: _step_seconds(environment, options) for name, environment in variants.items()}
    alone: Measurement = {name: [] for name in variants}
    beside: Measurement = {name: [] for name in variants}
    for _ in range(options.repeats):
        for rows, busy in ((alone, 0), (beside, 1)):
            with busy_processes(busy):
                for name, measure in measures.items():
                    rows[name].append(measure())
    report({"alone": alone, "beside a busy process": beside}, options.json)


def _step_seconds(environment: Mapping[str, str], options: argparse.Namespace) -> Callable[[], float]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}

    def measure() -> float:
        command = [sys.executable, "-c", STEP, str(options.steps), str(options.side)]
        done = subprocess.run(command, cwd=ROOT, env={**inherited, **environment}, check=True, capture_output=True)
        return float(done.stdout)

    return measure


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes that each keep one core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, name in ((start_up, "start-up"), (threads, "threads")):
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--repeats", type=int, default=5)
        command.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, machine and versions there")
        if function is start_up:
            command.add_argument("--other", type=Path, metavar="FOLDER", help="another checkout to compare with")
            command.add_argument("--images", type=Path, metavar="FOLDER", help="images or a DICOM series for inference")
        else:
            command.add_argument("--steps", type=int, default=10, help="steps of each measurement")
            command.add_argument("--side", type=int, default=32, help="side of the patches in voxels")
    options = parser.parse_args(argv)
    options.function(options)


if __name__ == "__main__":
    main()
