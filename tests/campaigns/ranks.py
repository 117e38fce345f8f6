# SPDX-License-Identifier: Apache-2.0
"""Compare two processes with one that has twice the batch: loss, gradient, memory, weights and validation metric.

    python -m tests.campaigns.ranks --output docs/results/ranks.csv
    python -m tests.campaigns.ranks --control --output docs/results/ranks_control.csv

Every method trains for a few steps on tiny demo volumes on the CPU with all of its losses active. In float64 only
rounding remains. In float32 a rounded voxel can fall on the other side of a decision (its class, or the embeddings that
enter the memory), and the runs then diverge. The control shows how far rounding alone drives two runs apart: it
compares one process with another whose first weights differ in the last digit.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.accuracy import append_row
from tests.conftest import ROOT
from tests.rank_processes import run_ranks
from tests.recorded_runs import Record, method_settings, train_and_record

METHODS = ("train", *sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml")))
COLUMNS = ("method", "precision", "step", "loss", "loss_difference", "gradient_difference", "weight_difference",
           "memory_rows", "memory_difference", "memory_on_both_ranks", "dice_difference")  # fmt: skip
RANKS = 2


def nudged(network: torch.nn.Module) -> torch.nn.Module:
    """The network with a random half of its weights moved up by one unit in the last place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            chosen = torch.rand(weight.shape, generator=generator) < 0.5
            weight.copy_(torch.where(chosen, torch.nextafter(weight, torch.full_like(weight, torch.inf)), weight))
    return network


NUDGED = {"_target_": "tests.campaigns.ranks.nudged", "network": "$@network_def.to(@device)"}


def compare(method: str, double: bool, steps: int, demo: Path, control: bool = False) -> list[dict[str, Any]]:
    """Rows of the table for the first and the last step of a method; see the module for `control`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files, overrides = method_settings(method, demo, folder / "two", steps, batch=RANKS if control else 1)
        target = str(folder / "rank_{rank}.pt")
        if control:
            train_and_record(files, {**overrides, "network": NUDGED}, double, target)
        else:
            files = ["train.yaml", "multi_gpu_train.yaml", *files[1:]]
            run_ranks(RANKS, folder / "ranks", train_and_record, files, overrides, double, target, join=False)
        files, overrides = method_settings(method, demo, folder / "one", steps, batch=RANKS)
        train_and_record(files, overrides, double, str(folder / "one.pt"))
        names = ("one", "rank_0", "rank_0" if control else "rank_1")
        one, first, second = (torch.load(folder / f"{name}.pt") for name in names)
    precision = "float64" if double else "float32"
    rows = []
    for step in sorted({1, steps}):
        rows.append({"method": method, "precision": precision, "step": step, **_differences(one, first, second, step)})
    rows[-1]["dice_difference"] = f"{abs(one['dice'] - first['dice']):.1e}"
    return rows


def _differences(one: Record, first: Record, second: Record, step: int) -> dict[str, Any]:
    alone, rank_0, rank_1 = (record["steps"][step] for record in (one, first, second))
    filled = int(alone["counts"].sum()) > 0
    size = alone["gradient"].norm()
    same = all(torch.equal(rank_0[key], rank_1[key]) for key in ("memory", "counts"))
    return {
        "loss": f"{alone['loss']:.6f}",
        "loss_difference": f"{abs(alone['loss'] - rank_0['loss']):.1e}",
        "gradient_difference": f"{float((alone['gradient'] - rank_0['gradient']).norm() / size):.1e}",
        "weight_difference": f"{_largest(alone['weights'] - rank_0['weights']):.1e}",
        "memory_rows": int(alone["counts"].sum()),
        "memory_difference": f"{_largest(alone['memory'] - rank_0['memory']):.1e}" if filled else "",
        "memory_on_both_ranks": ("equal" if same else "DIFFERENT") if filled else "",
        "dice_difference": "",
    }


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "float64"), default=("float64", "float32"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--control", action="store_true", help="compare with one process whose weights were nudged")
    parser.add_argument("--output", type=Path, help="CSV file; each row is appended as soon as it is measured")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more do not survive the forks of `run_ranks`
    with tempfile.TemporaryDirectory() as scratch:
        demo = ensure_demo_dataset(
            Path(scratch) / "demo", num_training=8, num_validation=3, num_test=1, shape=(32, 28, 20)
        )
        for precision in options.precisions:
            for method in options.methods:
                rows = compare(method, precision == "float64", options.steps, demo, options.control)
                csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n").writerows(rows)
                sys.stdout.flush()
                for row in rows if options.output is not None else ():
                    append_row(options.output, COLUMNS, row)


if __name__ == "__main__":
    main()
