# SPDX-License-Identifier: Apache-2.0
"""Kill training runs at random moments, resume them, and compare each with an uninterrupted run, to the bit.

    python -m tests.campaigns.kill_runs --kills 100 --folder kills --results docs/results/kills.csv

Each chain is one run that is killed by SIGKILL up to five times. Every other kill comes at a moment drawn over the
length of a whole run, the others while a checkpoint or model is being written; the table counts a kill as "writing" if
it left an unfinished file. Each finished chain becomes a row, and an interrupted campaign continues after the existing
rows. The runs are short and use the tiny demo volumes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.accuracy import append_row, read_rows
from tests import forked_command, parsed_once
from tests.conftest import ROOT
from tests.recorded_runs import differences, tiny_overrides

COLUMNS = ("chain", "method", "workers", "kills", "during_start", "during_steps", "during_writing", "lost", "equal")
STEPS, SAVE_INTERVAL = 12, 2
KILLS_PER_CHAIN = 5
TIMEOUT = 300.0


@dataclass
class Chain:
    """One run and its kills, counted by what the run was doing."""

    number: int
    method: str
    workers: int
    moments: dict[str, int] = field(default_factory=lambda: {"start": 0, "steps": 0, "writing": 0})
    lost: int = 0

    @property
    def kills(self) -> int:
        """Kills so far."""
        return sum(self.moments.values())


def training_command(method: str, workers: int, demo: Path, folder: Path, *more: str) -> list[str]:
    """Words after `python -m` of a short training."""
    files = [str(ROOT / "configs/train.yaml")]
    if method != "default":
        files.append(str(ROOT / f"configs/methods/{method}.yaml"))
    lengths = {"max_steps": STEPS, "save_interval": SAVE_INTERVAL, "val_interval": STEPS // 2, "num_workers": workers}
    overrides = {**tiny_overrides(demo, folder), **lengths}
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    return ["monai.bundle", "run", "training", "--config_file", str(files), *words, *more]


def uninterrupted_run(method: str, workers: int, demo: Path, folder: Path) -> float:
    """Train without a kill, unless `folder` holds such a run already; returns the seconds that it took."""
    clock = folder / "seconds"
    if not clock.exists():
        shutil.rmtree(folder, ignore_errors=True)
        start = time.monotonic()
        done = forked_command.run(training_command(method, workers, demo, folder), folder, TIMEOUT)
        if done.code != 0:
            raise RuntimeError(f"The uninterrupted run failed with exit code {done.code}: {done.errors[-2000:]}")
        clock.write_text(str(time.monotonic() - start))
    return float(clock.read_text())


def kill_and_resume(chain: Chain, kills: int, seconds: float, demo: Path, folder: Path) -> None:
    """Start, kill and resume a run until it has been killed `kills` times or has ended, then let it end.

    A run counts as lost if a resume is refused, or starts before the newest complete checkpoint.
    """
    draw = random.Random(f"moment {chain.number}")
    shutil.rmtree(folder, ignore_errors=True)
    words = training_command(chain.method, chain.workers, demo, folder, "--resume", "true")
    for attempt in range(KILLS_PER_CHAIN):
        if chain.kills == kills:
            break
        before = newest_checkpoint(folder)
        process = forked_command.start(words, folder)
        if attempt % 2 == 1:
            killed = kill_while_writing(process, folder, draw)
        else:
            killed = kill_after(process, draw.uniform(0.0, seconds))
        if not killed:
            break  # the run ended before its moment came
        chain.lost += newest_checkpoint(folder) < before
        torn = bool(_unfinished_files(folder))
        chain.moments["writing" if torn else "steps" if is_training(folder) else "start"] += 1
    done = forked_command.run(words, folder, TIMEOUT)
    chain.lost += done.code != 0


def kill_after(process: int, seconds: float) -> bool:
    """SIGKILL after this many seconds; false if the process has ended before."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    return _kill(process)


def kill_while_writing(process: int, folder: Path, draw: random.Random) -> bool:
    """SIGKILL up to 3 ms after the n-th unfinished file has appeared; false if the process has ended before."""
    start = time.monotonic()
    wanted, delay = draw.randint(1, 4), draw.uniform(0.0, 0.003)
    seen: set[str] = set()
    while time.monotonic() - start < TIMEOUT:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        seen |= _unfinished_files(folder)
        if len(seen) >= wanted:
            time.sleep(delay)
            return _kill(process)
    raise TimeoutError("No file was being written.")


def _unfinished_files(folder: Path) -> set[str]:
    """Temporary files, each with its inode, which tells files of one name apart."""
    found = set()
    for path in (folder / "models").glob(".*.tmp"):
        with suppress(FileNotFoundError):  # it may have been renamed by now
            found.add(f"{path.name} {path.stat().st_ino}")
    return found


def _kill(process: int) -> bool:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def newest_checkpoint(folder: Path) -> str:
    """Name of the newest checkpoint; empty if there is none."""
    return max((path.name for path in (folder / "models").glob("checkpoint_*.pt")), default="")


def is_training(folder: Path) -> bool:
    """Whether the process that was started last has checked its data, the last thing that it says before it trains."""
    output = folder / "stdout.txt"
    return output.exists() and "INFO check: Headers of" in output.read_text(encoding="utf-8", errors="replace")


def results_of(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves: its last checkpoint and both models."""
    names = (f"checkpoint_{STEPS:08d}.pt", "model.pt", "model_best.pt")
    return {name: torch.load(folder / "models" / name, weights_only=True) for name in names}


def table(rows: Sequence[dict[str, str]]) -> str:
    """Sums for each method and number of workers, as Markdown."""
    lines = [
        "| method | workers | chains | kills | start / steps / writing | lost | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = sorted({(row["method"], row["workers"]) for row in rows})
    for method, workers in [*groups, ("all", "")]:
        these = [r for r in rows if method == "all" or (r["method"], r["workers"]) == (method, workers)]
        kills, lost, *moments = (
            sum(int(row[name]) for row in these)
            for name in ("kills", "lost", "during_start", "during_steps", "during_writing")
        )
        same = sum(row["equal"] == "True" for row in these)
        shown = " / ".join(map(str, moments))
        lines.append(f"| {method} | {workers} | {len(these)} | {kills} | {shown} | {lost} | {same} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="total number of kills")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/kills.csv")
    parser.add_argument("--methods", nargs="+", default=["default", "prototype"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    demo = ensure_demo_dataset(folder / "demo", num_training=6, num_validation=1, num_test=1, shape=(32, 28, 20))
    parsed_once.install()
    forked_command.load_libraries()
    kinds = list(product(options.methods, options.workers))
    while (done := sum(int(row["kills"]) for row in read_rows(options.results))) < options.kills:
        number = len(read_rows(options.results))
        chain = Chain(number, *kinds[number % len(kinds)])
        whole = folder / f"whole_{chain.method}_{chain.workers}"
        seconds = uninterrupted_run(chain.method, chain.workers, demo, whole)
        parts = folder / "parts"
        kill_and_resume(chain, options.kills - done, seconds, demo, parts)
        same = chain.lost == 0 and not differences(results_of(whole), results_of(parts))
        values = (number, chain.method, chain.workers, chain.kills, *chain.moments.values(), chain.lost, same)
        append_row(options.results, COLUMNS, dict(zip(COLUMNS, values, strict=True)))
        print(
            f"chain {number}: {chain.method}, {chain.workers} workers, {chain.kills} kills, equal: {same}", flush=True
        )
    rows = read_rows(options.results)
    print(table(rows))
    if any(row["equal"] != "True" or row["lost"] != "0" for row in rows):
        sys.exit("Some runs were lost or differ.")


if __name__ == "__main__":
    main()
