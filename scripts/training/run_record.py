# SPDX-License-Identifier: Apache-2.0
"""A record of a training run, which is saved as `run.json` beside the weights and also inside the weights files."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from scripts.data.spec import ROLES, CaseLists, DatasetSpec
from scripts.data.training_cases import TrainingCases
from scripts.data.weights import CASES, ENTRY, NETWORK, RUN, read_weights, record_of
from scripts.distributed.collectives import is_rank0, num_ranks
from scripts.errors import UserError
from scripts.files import file_digest, read_text, write_text
from scripts.losses.base import WeightedLoss

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("monai", "torch", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")
LOCAL = ("command", "paths")
"""Entries of `run.json` that are not copied into the weights files, because they describe this machine."""

STEPS = 20
"""Steps between two updates of `run.json`."""


class RunRecord:
    """Write `run.json` when training starts, every 20 steps, and when it ends; weights files contain the same record.

    The record holds what is needed to repeat the run: the settings with all overrides, the seed, the versions of the
    libraries, digests of the data list and of the cases in each role, the state of the git repository, times, and the
    last losses and validation metrics. `run.json` also has the command and the paths of this machine.

    A resumed run keeps the start time of the first run, and adds the step and time at which it resumed.

    Args:
        path: the file, such as `outputs/models/run.json`.
        dataset: the dataset block.
        cases: the cases of its datalist.
        settings: what `scripts.cli.settings.run_settings` found on the command line; `None` if there is none.
        initial_weights: file with the network's initial weights, or `None`.
        copy: another file with the same content, such as `outputs/run.json`, or `None`.

    Attributes:
        training_cases: measures the training cases; the result is stored in weights files only. `None` measures none.
    """

    training_cases: TrainingCases | None = None

    def __init__(
        self,
        path: str | Path,
        dataset: DatasetSpec,
        cases: CaseLists,
        settings: Mapping[str, Any] | None = None,
        initial_weights: str | Path | None = None,
        copy: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.copies = {self.path, Path(copy or path)}
        given = initial_weights and {"file": Path(initial_weights).name, "sha256": file_digest(initial_weights)}
        self.content: dict[str, Any] = {
            "started": None,
            "ended": None,
            "resumed": [],
            "steps": 0,
            "metrics": {},
            "seed": None,
            "device": None,
            "initial_weights": given,
            "data": data_digests(dataset, cases),
            "versions": versions(),
            "git": git_state(ROOT),
            **(settings or {}),
        }

    def attach(self, engine: Engine) -> None:
        """Write when the trainer `engine` starts, at intervals, and when it ends. Attach after `TrainingCheckpoint`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=STEPS), self.progress)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def start(self, engine: SupervisedTrainer) -> None:
        """Record the time, the seed, the device, and whether an earlier run is resumed."""
        step, device = engine.state.iteration, engine.state.device
        earlier = self._earlier() if step > 0 else {}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
        self.content |= {
            "started": earlier.get("started") or now(),
            "resumed": [*earlier.get("resumed", []), *([{"step": step, "time": now()}] if step > 0 else [])],
            "steps": step,
            "metrics": earlier.get("metrics", {}),
            "seed": engine.data_loader.batches.seed,
            "device": {"type": device.type, "name": name or platform.machine(), "processes": num_ranks()},
        }
        self._write()

    def note_validation(self, validator: Engine, step: int) -> None:
        """Record the key metric of a validation, and its best value so far with the step of that value."""
        name = validator.state.key_metric_name
        value, best = rounded(validator.state.metrics[name]), self.content["metrics"].get(f"best_{name}")
        if best is None or value > best["value"]:
            best = {"value": value, "step": step}
        self.content["metrics"] |= {name: value, f"best_{name}": best}
        self.content["steps"] = step

    def progress(self, engine: SupervisedTrainer) -> None:
        """Record the number of steps and the losses of the last one."""
        losses = engine.loss_function.last if isinstance(engine.loss_function, WeightedLoss) else {}
        self.content["metrics"] |= {f"Loss/{name}": rounded(value) for name, value in losses.items()}
        self.content["steps"] = engine.state.iteration
        self._write()

    def end(self, engine: SupervisedTrainer) -> None:
        """Record the progress and the end time."""
        self.content["ended"] = now()
        self.progress(engine)

    def for_weights(self) -> dict[str, Any]:
        """Return the record without the entries that describe this machine only."""
        kept = {key: value for key, value in self.content.items() if key not in LOCAL}
        return json.loads(json.dumps(kept, default=str))

    def _write(self) -> None:
        if is_rank0():
            for path in self.copies:
                write_text(path, json.dumps(self.content, ensure_ascii=False, indent=1, default=str) + "\n")

    def _earlier(self) -> dict[str, Any]:
        try:
            content = json.loads(read_text(self.path))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def now() -> str:
    """Return the current time in UTC, to the second: `2026-11-29T13:34:48+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def rounded(value: float | torch.Tensor) -> float:
    """Round a number to six significant digits."""
    return float(f"{float(value):.6g}")


def data_digests(dataset: DatasetSpec, cases: CaseLists) -> dict[str, Any]:
    """Return a digest of the data list, and for each role the number of cases and a digest of their sorted names.

    Case names may identify patients, so they are not part of the record. Two runs have the same digests if they used
    the same cases in the same roles, wherever the files were stored.
    """
    roles = {role: sorted(str(case["case"]) for case in getattr(cases, role)) for role in ROLES}
    return {
        "datalist": {
            "file": Path(dataset.datalist).name,
            "sha256": file_digest(Path(dataset.directory) / dataset.datalist),
        },
        **{
            role: {"cases": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}
            for role, names in roles.items()
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of this bundle, of Python, and of the libraries for computing and for reading images."""
    found = {"bundle": json.loads(read_text(ROOT / "configs/metadata.json"))["version"]}
    return found | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a git repository, and whether files differ from it; `None` if `folder` is not its root."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None  # the bundle was unpacked inside another project's repository
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe_weights(path: str | Path) -> dict[str, Any]:
    """Describe a weights file by its size, digest, network, preprocessing and run, as JSON types.

    Raises:
        UserError: if the file is not a weights file.
    """
    state = read_weights(path, "give the path of a model.pt")
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []
    if not tensors:
        raise UserError(f"{path} holds no weights of a network: give a model.pt or model_best.pt.")
    records = {
        name: record_of(state, entry)
        for name, entry in (("network", NETWORK), ("preprocessing", ENTRY), ("run", RUN), ("training_cases", CASES))
    }
    if records["training_cases"] is not None:  # leave out the thumbnail, which has 512 numbers
        records["training_cases"] = {k: v for k, v in records["training_cases"].items() if k != "small"}
    return {
        "file": str(path),
        "sha256": file_digest(path),
        "weights": sum(value.numel() for value in tensors),
        **{entry: record for entry, record in records.items() if record is not None},
    }
