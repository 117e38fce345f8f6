# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate several methods with several seeds on one dataset, and write a CSV file with a row per run.

    python -m scripts.experiments.compare_methods --methods default supervised --results docs/results/demo.csv

The row of a run is written as soon as the run is evaluated, and runs that have a row are skipped, so an interrupted
comparison continues where it stopped. `default` is the method of `configs/train.yaml`; the others are files in
`configs/methods/`. Options after `--` are passed to training and evaluation unchanged, for example
`-- --dataset_dir FOLDER --labelled_cases 4`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.files import csv_rows

ROOT = Path(__file__).resolve().parents[2]
RUN_COLUMNS = ("dataset", "method", "seed", "overrides")
RESULT_COLUMNS = ("mean_dice", "mean_hd95_voxel", "mean_asd_voxel", "missed")
COLUMNS = (*RUN_COLUMNS, *RESULT_COLUMNS, "train_s")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; an empty list if the file does not exist yet."""
    return csv_rows(path) if path.is_file() else []


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file; a new file gets a header first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def config_files(dataset: str, method: str) -> list[str]:
    """Config files of a run, relative to the bundle's root; `default` adds no method file."""
    files = ["configs/train.yaml", f"configs/datasets/{dataset}.yaml"]
    return files if method == "default" else [*files, f"configs/methods/{method}.yaml"]


def without_folders(overrides: Sequence[str]) -> str:
    """Overrides as one string, with paths cut to their last part, so that results show no folders of one machine."""
    return " ".join(Path(word).name if "/" in word else word for word in overrides)


def run_once(dataset: str, method: str, seed: int, overrides: Sequence[str], folder: Path) -> dict[str, object]:
    """Train, evaluate on the test cases, and return the row of results.

    Raises:
        subprocess.CalledProcessError: if a command fails, after it has printed its output.
    """
    files = config_files(dataset, method)
    folders = ["--output_dir", str(folder / "out"), "--ckpt_dir", str(folder / "models")]

    def run(run_id: str, files: Sequence[str]) -> None:
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
        subprocess.run([*command, "--seed", str(seed), *folders, *overrides], cwd=ROOT, check=True)

    start = time.monotonic()
    run("training", files)
    seconds = round(time.monotonic() - start)
    run("evaluating", [*files, "configs/evaluate.yaml"])
    summary = json.loads((folder / "out/summary.json").read_text(encoding="utf-8"))
    results = {key: summary[key] for key in RESULT_COLUMNS if key in summary}
    results = {key: round(value, 4) if isinstance(value, float) else value for key, value in results.items()}
    names = (dataset, method, seed, without_folders(overrides))
    return {**dict(zip(RUN_COLUMNS, names, strict=True)), **results, "train_s": seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo", help="file in configs/datasets, without .yaml")
    parser.add_argument("--methods", nargs="+", default=["default", "supervised"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/demo.csv")
    options = parser.parse_args(own)
    for seed in options.seeds:
        for method in options.methods:
            run = (options.dataset, method, str(seed), without_folders(overrides))
            if run in {tuple(row[key] for key in RUN_COLUMNS) for row in read_rows(options.results)}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = run_once(options.dataset, method, seed, overrides, Path(folder))
            append_row(options.results, COLUMNS, row)


if __name__ == "__main__":
    main()
