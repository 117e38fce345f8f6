# SPDX-License-Identifier: Apache-2.0
"""Time and memory that `run evaluating` takes for few and for many test cases, generated on the spot.

    python -m scripts.benchmarks.many_evaluations --cases 250 1000

The network has random weights, so that structures are found in every case. Measured is the command
`python -m monai.bundle run evaluating` itself, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.large_volume import ROOT, make_model
from scripts.benchmarks.many_volumes import make_volumes
from scripts.benchmarks.peak_memory import measure_command
from scripts.benchmarks.rows import read_rows

BASE_FILTERS = 4
STRUCTURES = 3


def make_dataset(folder: Path, cases: int, shape: Sequence[int]) -> None:
    """Volumes with labels, all of them test cases but one, and a model."""
    make_volumes(folder / "data", cases + 1, cases + 1, shape)
    names = [path.name for path in sorted((folder / "data/images").iterdir())]
    entries = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    content = {"training": entries[:1], "test": entries[1:]}
    (folder / "data/dataset.json").write_text(json.dumps(content), encoding="utf-8")
    make_model(folder / "models/model.pt", BASE_FILTERS)


def words_of(folder: Path) -> list[str]:
    """The command for such a folder, behind `python -m`."""
    files = [str(ROOT / "configs" / name) for name in ("train.yaml", "evaluate.yaml")]
    return [
        *("monai.bundle", "run", "evaluating", "--config_file", str(files), "--bundle_root", str(ROOT)),
        *("--dataset_dir", str(folder / "data"), "--data_source", str(folder / "data"), "--labelled_cases", "1"),
        *("--ckpt_dir", str(folder / "models"), "--output_dir", str(folder / "out")),
        *("--base_filters", str(BASE_FILTERS), "--device", "cpu"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=[250, 1000])
    parser.add_argument("--shape", nargs=3, type=int, default=[48, 48, 24], help="voxels of each")
    options = parser.parse_args(argv)
    size = " x ".join(map(str, options.shape))
    for cases in options.cases:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_dataset(folder, cases, options.shape)
            seconds, mebibytes = measure_command(words_of(folder), ROOT)
            rows = len(read_rows(folder / "out/metrics.csv"))
        if rows != cases * STRUCTURES:
            raise RuntimeError(f"{cases} cases gave {rows} rows instead of {cases * STRUCTURES}.")
        print(f"{cases} cases of {size} voxels: {seconds:.1f} s, peak memory {mebibytes:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
