# SPDX-License-Identifier: Apache-2.0
"""Kill training runs at random moments, resume them, and compare each with a run that was never stopped, to the bit.

    python -m scripts.benchmarks.kill_runs --kills 100 --folder kills --results docs/results/kills.csv

A chain is one run that is killed by SIGKILL several times. The moments are drawn in turn over the length of a whole run
and over the writing of a state or model; the table counts as "writing" what left an unfinished file. A row is written
for every finished chain; a stopped campaign goes on behind the rows that are there. Runs are short, on demo volumes at
half resolution, and lie in `--folder`.
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

from scripts.benchmarks import forked_command
from scripts.benchmarks.rows import append_row, read_rows
from scripts.data.demo import ensure_demo_dataset

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("chain", "method", "workers", "kills", "during_start", "during_steps", "during_writing", "lost", "equal")
STEPS, SAVE_INTERVAL = 12, 2
KILLS_A_CHAIN = 5
TIMEOUT = 300.0


@dataclass
class Chain:
    """One run with its kills."""

    number: int
    method: str
    workers: int
    moments: dict[str, int] = field(default_factory=lambda: {"start": 0, "steps": 0, "writing": 0})
    lost: int = 0

    @property
    def kills(self) -> int:
        """Kills so far."""
        return sum(self.moments.values())


def command(method: str, workers: int, demo: Path, folder: Path, *more: str) -> list[str]:
    """Words behind `python -m` of a short run."""
    files = [str(ROOT / "configs/train.yaml")]
    if method != "default":
        files.append(str(ROOT / f"configs/methods/{method}.yaml"))
    return [
        *("monai.bundle", "run", "training", "--config_file", str(files), "--bundle_root", str(ROOT)),
        *("--data_source", str(demo), "--dataset_dir", str(demo)),
        *("--output_dir", str(folder / "out"), "--ckpt_dir", str(folder / "models")),
        *("--roi_size", "[32,32,16]", "--spacing", "[3.0,3.0,4.0]", "--base_filters", "4"),
        *("--batch_labelled", "1", "--batch_unlabelled", "1", "--unlabelled_start", "0.0"),
        *("--precision", "fp32", "--device", "cpu", "--num_workers", str(workers), "--val_interval", "6"),
        *("--max_steps", str(STEPS), "--save_interval", str(SAVE_INTERVAL), *more),
    ]


def whole_run(method: str, workers: int, demo: Path, folder: Path) -> float:
    """A run that nobody stops, done once; returns the seconds that it took."""
    clock = folder / "seconds"
    if not clock.exists():
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.monotonic()
        ended = forked_command.run(command(method, workers, demo, folder), folder, TIMEOUT)
        if ended.code != 0:
            raise RuntimeError(f"A run that nobody stopped ended with {ended.code}: {ended.errors[-2000:]}")
        clock.write_text(str(time.monotonic() - begin))
    return float(clock.read_text())


def kill_until_done(chain: Chain, kills: int, seconds: float, demo: Path, folder: Path) -> None:
    """Start, kill and resume a run until it has been killed so often or is done, then let it end.

    A resume that is refused, or that goes on from before the last state that was whole when the process died, is a lost
    run.
    """
    draw = random.Random(f"moment {chain.number}")
    shutil.rmtree(folder, ignore_errors=True)
    words = command(chain.method, chain.workers, demo, folder, "--resume", "true")
    for attempt in range(KILLS_A_CHAIN):
        if chain.kills == kills:
            break
        before = last_state(folder)
        process = forked_command.start(words, folder)
        if attempt % 2 == 1:
            killed = kill_inside_writing(process, folder, draw)
        else:
            killed = kill_at(process, draw.uniform(0.0, seconds))
        if not killed:
            break  # it was done before its moment came
        chain.lost += last_state(folder) < before
        torn = bool(_unfinished(folder))
        chain.moments["writing" if torn else "steps" if started(folder) else "start"] += 1
    ended = forked_command.run(words, folder, TIMEOUT)
    chain.lost += ended.code != 0


def kill_at(process: int, seconds: float) -> bool:
    """SIGKILL after so many seconds; false if the process has ended by itself before."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    return _kill(process)


def kill_inside_writing(process: int, folder: Path, draw: random.Random) -> bool:
    """SIGKILL while a state or model is under way to its name: up to 3 ms after the n-th unfinished file came."""
    begin = time.monotonic()
    wanted, delay = draw.randint(1, 4), draw.uniform(0.0, 0.003)
    seen: set[str] = set()
    while time.monotonic() - begin < TIMEOUT:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        seen |= _unfinished(folder)
        if len(seen) >= wanted:
            time.sleep(delay)
            return _kill(process)
    raise TimeoutError("No file was being written.")


def _unfinished(folder: Path) -> set[str]:
    """Files on the way to their name, each with its inode, as the next one of that name is another."""
    found = set()
    for path in (folder / "models").glob(".*.tmp"):
        with suppress(FileNotFoundError):  # it may have its name by now
            found.add(f"{path.name} {path.stat().st_ino}")
    return found


def _kill(process: int) -> bool:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def last_state(folder: Path) -> str:
    """Name of the newest state, empty where there is none."""
    return max((path.name for path in (folder / "models").glob("checkpoint_*.pt")), default="")


def started(folder: Path) -> bool:
    """Whether the process that was just killed had come to its steps."""
    said = folder / "stderr.txt"
    return said.exists() and "training:" in said.read_text(encoding="utf-8", errors="replace")


def results_of(folder: Path) -> dict[str, Any]:
    """All that a run leaves: its last state and both models."""
    names = (f"checkpoint_{STEPS:08d}.pt", "model.pt", "model_best.pt")
    return {name: torch.load(folder / "models" / name, weights_only=True) for name in names}


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


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
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/kills.csv")
    parser.add_argument("--methods", nargs="+", default=["default", "prototype"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    demo = ensure_demo_dataset(folder / "demo", num_training=6, num_validation=1, num_test=1, shape=(32, 28, 20))
    forked_command.load_libraries()
    kinds = list(product(options.methods, options.workers))
    while (done := sum(int(row["kills"]) for row in read_rows(options.results))) < options.kills:
        number = len(read_rows(options.results))
        chain = Chain(number, *kinds[number % len(kinds)])
        whole = folder / f"whole_{chain.method}_{chain.workers}"
        seconds = whole_run(chain.method, chain.workers, demo, whole)
        parts = folder / "parts"
        kill_until_done(chain, options.kills - done, seconds, demo, parts)
        same = chain.lost == 0 and equal(results_of(whole), results_of(parts))
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
