# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate several methods with several seeds on one dataset; one row a run in a CSV file.

    python -m scripts.benchmarks.compare_methods --methods default supervised --results docs/results/demo.csv

A row is written when its run is evaluated, and rows that are there are not run again, so a stopped comparison goes on
where it stopped. `default` is the method of `configs/train.yaml`; others are files in `configs/methods/`. What stands
behind `--` goes to both commands as it is, e.g. `-- --dataset_dir FOLDER --labelled_cases 4`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.rows import append_row, read_rows

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (
    "dataset",
    "method",
    "seed",
    "overrides",
    "mean_dice",
    "mean_hd95_voxel",
    "mean_asd_voxel",
    "missed",
    "train_s",
)


def config_files(dataset: str, method: str) -> list[str]:
    """Config files of a run, relative to the bundle's root; `default` adds no method file."""
    files = ["configs/train.yaml", f"configs/datasets/{dataset}.yaml"]
    return files if method == "default" else [*files, f"configs/methods/{method}.yaml"]


def without_folders(overrides: Sequence[str]) -> str:
    """Overrides as one text; of a path the last part only, as a machine's folders are nobody else's business."""
    return " ".join(Path(word).name if "/" in word else word for word in overrides)


def run_once(dataset: str, method: str, seed: int, overrides: Sequence[str], folder: Path) -> dict[str, object]:
    """Train, evaluate on the test cases, and return a row.

    Raises:
        subprocess.CalledProcessError: if either command fails; its output has been shown by then.
    """
    files = config_files(dataset, method)
    common = [
        "--seed",
        str(seed),
        "--output_dir",
        str(folder / "out"),
        "--ckpt_dir",
        str(folder / "models"),
        *overrides,
    ]

    def command(run_id: str, names: list[str]) -> list[str]:
        return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(names), *common]

    begin = time.monotonic()
    subprocess.run(command("training", files), cwd=ROOT, check=True)
    seconds = time.monotonic() - begin
    subprocess.run(command("evaluating", [*files, "configs/evaluate.yaml"]), cwd=ROOT, check=True)
    summary = json.loads((folder / "out/summary.json").read_text(encoding="utf-8"))
    row = {key: summary[key] for key in COLUMNS if key in summary}
    row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    return row | {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "overrides": without_folders(overrides),
        "train_s": round(seconds),
    }


def finished(results: Path) -> set[tuple[str, ...]]:
    """(dataset, method, seed, overrides) of the rows in the file."""
    return {tuple(row[key] for key in COLUMNS[:4]) for row in read_rows(results)}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo", help="file in configs/datasets, without .yaml")
    parser.add_argument("--methods", nargs="+", default=["default", "supervised"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/demo.csv")
    options = parser.parse_args(own)
    shown = without_folders(overrides)
    for seed in options.seeds:
        for method in options.methods:
            if (options.dataset, method, str(seed), shown) not in finished(options.results):
                with tempfile.TemporaryDirectory() as folder:
                    append_row(
                        options.results, COLUMNS, run_once(options.dataset, method, seed, overrides, Path(folder))
                    )


if __name__ == "__main__":
    main()
