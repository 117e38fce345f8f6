# SPDX-License-Identifier: Apache-2.0
"""Memory, open files and threads of a training after a few hundred and after a few thousand steps.

    python -m scripts.benchmarks.long_training --steps 300 3000 --workers 0 2

The default method on tiny demo volumes, on the CPU, with a validation and a saved state every 100 steps. Memory is the
mean over the last 50 steps before each number, as allocators breathe: what the process holds, and what its loader's
workers hold for themselves. Ends with 1 if memory differs by more than 2 %, or files or threads differ at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import psutil
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from scripts.benchmarks.rows import append_row, read_rows
from scripts.benchmarks.tiny_run import ROOT, tiny_overrides
from scripts.data.demo import ensure_demo_dataset

COLUMNS = ("workers", "step", "memory_mib", "workers_mib", "open_files", "threads", "processes")
WINDOW = 50
TOLERANCE = 0.02


def train(demo: Path, folder: Path, steps: Sequence[int], workers: int, results: Path) -> None:
    """Train up to the last of `steps` and write a row at each of them."""
    torch.set_num_threads(1)
    overrides = {
        **tiny_overrides(demo, folder),
        "num_workers": workers,
        "max_steps": max(steps),
        "val_interval": 100,
        "save_interval": 100,
    }
    workflow = ConfigWorkflow(config_file=str(ROOT / "configs/train.yaml"), workflow_type="train", **overrides)
    workflow.initialize()
    samples: list[tuple[float, float]] = []

    def look(engine: Engine) -> None:
        step = engine.state.iteration
        if not any(mark - WINDOW < step <= mark for mark in steps):
            samples.clear()
            return
        samples.append(memory_mib())
        if step in steps:
            held, own = (round(mean(values), 1) for values in zip(*samples, strict=True))
            append_row(results, COLUMNS, dict(zip(COLUMNS, (workers, step, held, own, *handles()), strict=True)))

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    workflow.run()
    workflow.finalize()


def memory_mib() -> tuple[float, float]:
    """What this process holds, and what its children hold that nobody shares, MiB."""
    process = psutil.Process()
    shares = [child.memory_full_info().uss for child in process.children(recursive=True)]
    return process.memory_info().rss / 2**20, sum(shares) / 2**20


def handles() -> tuple[int, int, int]:
    """Open files and threads of this process and its children together, and how many processes these are."""
    process = psutil.Process()
    family = [process, *process.children(recursive=True)]
    return sum(p.num_fds() for p in family), sum(p.num_threads() for p in family), len(family)


def grown(rows: Sequence[dict[str, str]]) -> list[str]:
    """What differs between the first and the last row of one run by more than it may, in words."""
    first, last = rows[0], rows[-1]
    memory = [float(row["memory_mib"]) + float(row["workers_mib"]) for row in (first, last)]
    words = [f"{name} {first[name]} and {last[name]}" for name in COLUMNS[4:] if first[name] != last[name]]
    if abs(memory[1] - memory[0]) > TOLERANCE * memory[0]:
        words.append(f"memory {memory[0]:.1f} and {memory[1]:.1f} MiB")
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 3000], help="when to look, ascending")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes, a run for each")
    options = parser.parse_args(argv)
    different = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        demo = ensure_demo_dataset(folder / "demo", num_training=6, num_validation=1, num_test=1, shape=(32, 28, 20))
        for workers in options.workers:
            results = folder / f"{workers}.csv"
            # A process for each: what one run leaves behind is not the next one's.
            given = (demo, folder / f"run_{workers}", options.steps, workers, results)
            run = multiprocessing.get_context("fork").Process(target=train, args=given)
            run.start()
            run.join()
            if run.exitcode != 0:
                sys.exit(f"The run with {workers} workers ended with {run.exitcode}.")
            rows = read_rows(results)
            for row in rows:
                print(
                    f"{workers} workers, step {row['step']}: {row['memory_mib']} MiB and {row['workers_mib']} MiB of "
                    f"workers, {row['open_files']} open files, {row['threads']} threads, {row['processes']} processes",
                    flush=True,
                )
            different += [f"{workers} workers: {words}" for words in grown(rows)]
    if different:
        sys.exit(f"Between the first and the last step differ {'; '.join(different)}.")


if __name__ == "__main__":
    main()
