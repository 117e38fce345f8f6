# SPDX-License-Identifier: Apache-2.0
"""Tiny trainings whose steps are recorded, and the comparison of two states to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys

from scripts.distributed.collectives import is_rank0, rank
from tests.conftest import ROOT, TINY

Record = dict[str, Any]


def tiny_overrides(demo: Path, folder: Path) -> dict[str, Any]:
    """Overrides of `configs/train.yaml` for steps of milliseconds; outputs and models go below `folder`."""
    folders = {"output_dir": str(folder / "out"), "ckpt_dir": str(folder / "models")}
    return {**TINY, "dataset_dir": str(demo), **folders}


def method_settings(method: str, demo: Path, folder: Path, steps: int, batch: int) -> tuple[list[str], dict[str, Any]]:
    """Config files and overrides of a tiny run of a method, with every loss active from the first step.

    Schedules start at their final weight and thresholds are open, so that all losses and the memory take part.

    Args:
        method: a file in `configs/methods`, or `train` for the default method.
        demo: folder of the tiny demo volumes.
        folder: outputs and models go below it.
        steps: number of steps; the last one validates and saves.
        batch: labelled patches in a batch, and unlabelled ones.
    """
    files = ["train.yaml", *([] if method == "train" else [f"methods/{method}.yaml"])]
    lengths = {"max_steps": steps, "val_interval": steps, "save_interval": steps}
    unlabelled = 0 if method == "supervised" else batch
    overrides = {**tiny_overrides(demo, folder), **lengths, "batch_labelled": batch, "batch_unlabelled": unlabelled}
    if method in ("train", "self_training"):
        # Pseudo-labels are made before the first step, and take part from the second.
        overrides |= {"restart": 0.01, "self_training::min_dice": 0}
    config = ConfigParser.load_config_files([str(ROOT / "configs" / file) for file in files])
    for name, term in config["terms"].items():
        if isinstance(term.get("weight"), dict):
            overrides |= {f"terms::{name}::weight::start": 0.0, f"terms::{name}::weight::end": 0.0}
        if "UnlabelledContrast" in term["_target_"]:
            overrides[f"terms::{name}::confidence"] = 0.0
    for place, handler in enumerate(config["method_handlers"]):
        where = handler[1:] if isinstance(handler, str) else f"method_handlers::{place}"
        if "MemoryBankUpdater" in (config[where] if isinstance(handler, str) else handler)["_target_"]:
            overrides |= {f"{where}::{key}": 0.0 for key in ("confidence", "labelled_confidence")}
            overrides[f"{where}::only_correct"] = False
    return files, overrides


def train_and_record(files: Sequence[str], overrides: dict[str, Any], double: bool, target: str) -> None:
    """Train in this process, alone or as one of several, and save a record of the steps and the last validation.

    Args:
        files: names in `configs/`.
        overrides: of the configuration.
        double: compute in float64.
        target: file to write; `{rank}` stands for this process's rank.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        if double:
            engines = ("train::trainer", "validate::evaluator")
            overrides = {**overrides, **{f"{e}::to_kwargs": {"dtype": "$torch.float64"} for e in engines}}
        paths = [str(ROOT / "configs" / file) for file in files]
        workflow = ConfigWorkflow(config_file=paths, workflow_type="train", **overrides)
        workflow.initialize()
        record = attach_recorder(workflow)
        workflow.run()
        record["dice"] = workflow.parser.get_parsed_content("train::handlers")[0].best_model.best_metric
        if is_rank0() or "{rank}" in target:
            torch.save(record, target.format(rank=rank()))
        workflow.finalize()
    finally:
        torch.set_default_dtype(torch.float32)


def attach_recorder(workflow: ConfigWorkflow) -> Record:
    """A record that fills while the workflow runs: loss, gradient, weights and memory of each step."""
    network, loss, memory = (workflow.parser.get_parsed_content(key) for key in ("network", "loss", "memory"))
    record: Record = {"steps": {}}

    def note(engine: Engine) -> None:
        parameters = list(dict.fromkeys(p for module in (network, loss) for p in module.parameters()))
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        record["steps"][engine.state.iteration] = {
            "loss": float(engine.state.output[0][Keys.LOSS].detach()),
            "gradient": torch.cat([g.reshape(-1) for g in gradients]).clone(),
            "weights": torch.cat([each.detach().flatten() for each in parameters]),
            "memory": memory.features.clone(),
            "counts": memory.counts.clone(),
        }

    workflow.trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, note)
    return record


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two nested states differ in structure, type or value, tensors to the bit."""
    if type(first) is not type(second):
        return [path]
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [path]
        return [d for key in first for d in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [path]
        return [d for i, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    return [] if first == second else [path]
