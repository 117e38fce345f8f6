# SPDX-License-Identifier: Apache-2.0
"""Time and memory that `run check_data` takes for few and for many cases, generated on the spot.

python -m scripts.benchmarks.many_checks --cases 100 1000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.many_volumes import make_volumes, peak_mib
from scripts.dataset_setup.check_data import check_data

NAMES = ["background", "first", "second", "third"]


def make_dataset(folder: Path, cases: int, shape: Sequence[int]) -> None:
    """Volumes with a `dataset.json`; all of them have labels."""
    make_volumes(folder, cases, cases, shape)
    names = [path.name for path in sorted((folder / "images").iterdir())]
    training = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": training}), encoding="utf-8")


def measure(folder: Path, shape: Sequence[int]) -> float:
    """Seconds for the folder.

    Raises:
        UserError: if something is found that should not be.
    """
    start = time.perf_counter()
    check_data(folder, "dataset.json", None, 0, 1, NAMES, [0.8, 0.8, 2.5], shape, folder / "out", show=lambda _: None)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=[100, 1000], help="few first: the peak never falls")
    parser.add_argument("--shape", nargs=3, type=int, default=[64, 64, 48], help="voxels of each")
    options = parser.parse_args(argv)
    size = " x ".join(map(str, options.shape))
    for cases in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            make_dataset(Path(folder), cases, options.shape)
            seconds = measure(Path(folder), options.shape)
        print(f"{cases} cases of {size} voxels: {seconds:.1f} s, peak memory {peak_mib():.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
