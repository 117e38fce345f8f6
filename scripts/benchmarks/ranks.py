# SPDX-License-Identifier: Apache-2.0
"""Two processes against one with twice the batch: how far do loss, gradient, memory, weights and metric differ?

    python -m scripts.benchmarks.ranks --output docs/results/ranks.csv
    python -m scripts.benchmarks.ranks --control --output docs/results/ranks_control.csv

Every method trains for a few steps on tiny demo volumes on the CPU, all of its terms switched on from the first step
and its thresholds open, so that there is something to differ. In float64 what remains is rounding; in float32 a rounded
voxel can fall on the other side of a decision (which class, which rows enter the memory), and runs then part for good.
How far rounding alone drives two runs apart, the control shows: one process against one whose first weights differ from
its own in the last digit.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.utils import parameters_to_vector

from scripts.benchmarks.rows import append_row
from scripts.benchmarks.tiny_run import ROOT, tiny_overrides
from scripts.data.demo import ensure_demo_dataset
from scripts.distributed.collectives import is_rank0, rank

METHODS = ("train", *sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml")))
COLUMNS = ("method", "precision", "step", "loss", "loss_difference", "gradient_difference", "weight_difference",
           "memory_rows", "memory_difference", "memory_on_both_ranks", "dice_difference")  # fmt: skip
RANKS = 2

Record = dict[str, Any]


def launch(ranks: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function` in `ranks` processes as `torchrun --standalone` starts them.

    Args:
        ranks: at least 1.
        function: importable by name.
        arguments: can be pickled.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="ranks",
        max_restarts=0,
    )
    elastic_launch(config, function)(*arguments)


def train_and_record(files: Sequence[str], overrides: Mapping[str, Any], double: bool, target: str) -> None:
    """Train in this process, one of several or alone; save what `recorder` saw and the last validation's metric.

    Args:
        files: names in `configs/`.
        overrides: of the configuration.
        double: compute in float64.
        target: file to write; `{rank}` stands for this process's number.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        overrides = {**overrides, **_in_double()} if double else overrides
        paths = [str(ROOT / "configs" / file) for file in files]
        workflow = ConfigWorkflow(config_file=paths, workflow_type="train", **overrides)
        workflow.initialize()
        record = recorder(workflow)
        workflow.run()
        record["dice"] = workflow.parser.get_parsed_content("validate::best_model").best_metric
        if is_rank0() or "{rank}" in target:
            torch.save(record, target.format(rank=rank()))
        workflow.finalize()
    finally:
        torch.set_default_dtype(torch.float32)


def _in_double() -> dict[str, Any]:
    return {f"{engine}::to_kwargs": {"dtype": "$torch.float64"} for engine in ("train::trainer", "validate::evaluator")}


def recorder(workflow: ConfigWorkflow) -> Record:
    """A record that fills while the workflow runs: by step loss, gradient, weights and memory."""
    content = workflow.parser.get_parsed_content
    modules = (content("network"), content("train::loss"))
    memory = content("memory")
    record: Record = {"steps": {}}

    def note(engine: Engine) -> None:
        parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        record["steps"][engine.state.iteration] = {
            "loss": float(engine.state.output[0][Keys.LOSS].detach()),
            "gradient": torch.cat([g.reshape(-1) for g in gradients]).clone(),
            "weights": parameters_to_vector(parameters).detach().clone(),
            "memory": memory.features.clone(),
            "counts": memory.counts.clone(),
        }

    workflow.trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, note)
    return record


def settings(method: str, demo: Path, folder: Path, steps: int, batch: int) -> tuple[list[str], dict[str, Any]]:
    """Configuration files and overrides of a tiny run of a method with all its terms at work."""
    files = ["train.yaml", *([] if method == "train" else [f"methods/{method}.yaml"])]
    overrides: dict[str, Any] = {
        **tiny_overrides(demo, folder, batch),
        "max_steps": steps,
        "val_interval": steps,
        "save_interval": steps,
        "validate::handlers::2::limit": 0,  # pictures take longer than all else
    }
    config = ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files])
    for name, term in config["terms"].items():
        if isinstance(term.get("weight"), dict):
            overrides |= {f"terms::{name}::weight::start": 0.0, f"terms::{name}::weight::end": 0.0}
        if "UnlabelledContrast" in term["_target_"]:
            overrides[f"terms::{name}::confidence"] = 0.0
    for place, handler in enumerate(config["method_handlers"]):
        if "MemoryBankUpdater" in handler["_target_"]:
            where = f"method_handlers::{place}"
            overrides |= {f"{where}::{key}": 0.0 for key in ("confidence", "labelled_confidence")}
            overrides[f"{where}::only_correct"] = False
    if method == "supervised":
        overrides["batch_unlabelled"] = 0
    return files, overrides


def nudged(network: torch.nn.Module) -> torch.nn.Module:
    """The network with each weight moved by a last digit or not at all, as chance has it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            chosen = torch.rand(weight.shape, generator=generator) < 0.5
            weight.copy_(torch.where(chosen, torch.nextafter(weight, torch.full_like(weight, torch.inf)), weight))
    return network


NUDGED = {"_target_": "scripts.benchmarks.ranks.nudged", "network": "$@network_def.to(@device)"}


def compare(method: str, double: bool, steps: int, demo: Path, control: bool = False) -> list[dict[str, Any]]:
    """Rows of the table for the first and the last step of a method; `control` as in the module's first lines."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files, overrides = settings(method, demo, folder / "two", steps, batch=RANKS if control else 1)
        target = str(folder / "rank_{rank}.pt")
        if control:
            train_and_record(files, {**overrides, "network": NUDGED}, double, target)
        else:
            several = ["train.yaml", "multi_gpu_train.yaml", *files[1:]]
            launch(RANKS, train_and_record, several, overrides, double, target)
        files, overrides = settings(method, demo, folder / "one", steps, batch=RANKS)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "float64"), default=("float64", "float32"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--control", action="store_true", help="no second process, but weights moved by a last digit")
    parser.add_argument("--output", type=Path, help="CSV file that gets each row when it is finished")
    options = parser.parse_args(argv)
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
