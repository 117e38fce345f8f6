# SPDX-License-Identifier: Apache-2.0
"""The record of an evaluation or an inference, from which the report says what was run."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from scripts.cli.overrides import check_overrides, is_command_line
from scripts.cli.runs import shell_line
from scripts.data.weights import RUN
from scripts.errors import UserError, first_line
from scripts.files import write_text

EVALUATION, INFERENCE, TRAINING = "report/evaluation.json", "inference.json", "run.json"
"""Records in an output folder. `scripts.training.run_record` writes that of a training."""

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")


def write_record(
    path: Path,
    facts: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Write the record of this process.

    Args:
        path: the file.
        facts: statements about the run; the keys are those of `scripts.report.content.FACTS`.
        run: record of the training of the model, if there is one.
        training: result of `compare_with_training`, if it is known.
        argv: the command line; `None` takes that of this process.
    """
    words, config = list(sys.argv if argv is None else argv), ""
    if is_command_line(words):
        settings = {key: value for key, value in check_overrides(words).items() if key != "_meta_"}
        config = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    record = {
        "facts": dict(facts),
        "command": shell_line(["python", "-m", "monai.bundle", *words[1:]]) if config else "",
        "config": config,
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "training": training,
        "run": run,
        "ended": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    write_text(path, json.dumps(record, ensure_ascii=False, indent=1, default=str) + "\n")


def record_inference(output_dir: str | Path, facts: Mapping[str, Any], network: Any) -> None:
    """Write `inference.json` into an output folder.

    Args:
        output_dir: the folder.
        facts: see `write_record`.
        network: the loaded model. Its training is recorded too, if its file is a `model.pt`; of an ensemble, that of
            the first model.
    """
    write_record(Path(output_dir) / INFERENCE, facts, getattr(network, "records", {}).get(RUN))


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record that belongs to the results in an output folder; without results, that of its training."""
    evaluated = (folder / "metrics.csv").is_file()
    record = existing_json(folder / EVALUATION) if evaluated else existing_json(folder / INFERENCE)
    empty: dict[str, Any] = {"facts": {}, "command": "", "config": "", "versions": {}}
    return record or empty | {"run": existing_json(folder / TRAINING)}


def existing_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that the bundle has written; return `None` if it does not exist.

    Raises:
        UserError: if the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): make it again.") from error
