# SPDX-License-Identifier: Apache-2.0
"""Measure how long short commands take, which is mostly start-up time, and what they import.

    python -m scripts.experiments.start_up commands
    python -m scripts.experiments.start_up imports

`commands` runs the help, one training step on the demo, and a prediction of a small generated DICOM series with the
included model, in turn; the table has medians. Other work on the machine affects the processor time less than the wall
time. `imports` lets Python measure the imports of these commands (`-X importtime`, which itself takes time) and sums
them by library.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scripts.data.demo import ensure_demo_dataset
from scripts.experiments.measure import CONFIGS, ROOT, Rows, command_line, run_measurement

TRAIN, PREDICT = "train, one step of the demo", "predict, one DICOM series"


@contextmanager
def short_commands() -> Iterator[dict[str, list[str]]]:
    """Yield the arguments after `python -m` of each command, by description; their files exist in this context only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo, series = ensure_demo_dataset(folder / "demo"), write_series(folder / "series", (48, 48, 32))
        yield {
            "help": ["scripts", "--help"],
            TRAIN: [
                *("monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")),
                *("--bundle_root", str(ROOT), "--dataset_dir", str(demo), "--output_dir", str(folder / "run")),
                *("--ckpt_dir", str(folder / "run/models"), "--max_steps", "1"),
                *("--restart", "1", "--unlabelled_start", "0"),  # skip pseudo-labels of all unlabelled volumes
            ],
            PREDICT: ["scripts", "predict", str(series), "--output_dir", str(folder / "predicted")],
        }


def write_series(folder: Path, shape: Sequence[int]) -> Path:
    """Write noise as a DICOM series of axial slices with voxels of 1 mm, and return its folder."""
    import itk  # imported here, because no other measurement needs it

    folder.mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(0, 1000, (shape[2], 1, shape[1], shape[0]), dtype=np.int16)
    tags = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0020|000d": "1.2.826.0.1"}
    for number, plane in enumerate(voxels):
        image = itk.image_from_array(plane)
        image.SetOrigin([0.0, 0.0, float(number)])
        uids = {"0008|0018": f"1.2.826.0.2.{number + 1}", "0020|000e": "1.2.826.0.2", "0020|0013": str(number + 1)}
        for tag, value in (tags | uids).items():
            image.GetMetaDataDictionary()[tag] = value
        writer = itk.GDCMImageIO.New()
        writer.KeepOriginalUIDOn()
        itk.imwrite(image, str(folder / f"{number:03d}.dcm"), imageio=writer)
    return folder


def commands(options: argparse.Namespace) -> Rows:
    """Measure wall time and processor time of each command."""
    with short_commands() as wanted:
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted}
        for _ in range(options.repeats):
            for name, words in wanted.items():
                measured[name].append(run_command(words))
    rows = []
    for name, pairs in measured.items():
        seconds, processor = map(statistics.median, zip(*pairs, strict=True))
        rows.append({"command": name, "time s": round(seconds, 2), "processor s": round(processor, 2)})
    return rows


def run_command(words: Sequence[str]) -> tuple[float, float]:
    """Run `python -m WORDS` in the bundle's folder; return seconds and processor seconds, including child processes.

    Raises:
        subprocess.CalledProcessError: if the command fails; its output has been printed.
    """
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(options: argparse.Namespace) -> Rows:
    """Measure the import time of the slowest libraries, and its share of all imports of the command."""
    with short_commands() as wanted:
        found = {name: import_seconds(wanted[name]) for name in (TRAIN, PREDICT)}
    rows = []
    for name, seconds in found.items():
        for library, value in seconds.most_common(options.libraries):
            share = round(100 * value / seconds.total(), 1)
            rows.append({"command": name, "library": library, "time s": round(value, 2), "share %": share})
    return rows


def import_seconds(words: Sequence[str]) -> Counter[str]:
    """Return the seconds that `python -m WORDS` spends in the modules of each library, without their own imports."""
    command = [sys.executable, "-X", "importtime", "-m", *words]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds: Counter[str] = Counter()
    for microseconds, library in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\w+)", done.stderr, re.MULTILINE):
        seconds[library] += int(microseconds) / 1e6  # type: ignore[assignment]
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this module."""
    parser, options = command_line(__doc__, (commands, imports))
    options["commands"]("--repeats", type=int, default=5)
    options["imports"]("--libraries", type=int, default=10, help="rows for each command")
    run_measurement(parser, options, argv)


if __name__ == "__main__":
    main()
