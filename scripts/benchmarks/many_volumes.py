# SPDX-License-Identifier: Apache-2.0
"""Time and memory that `scripts.cli.new_dataset` takes for many volumes, generated on the spot.

python -m scripts.benchmarks.many_volumes --volumes 500 --labelled 250
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from scripts.dataset_setup.new_dataset import new_dataset
from scripts.dataset_setup.roles import Request


def make_volumes(folder: Path, volumes: int, labelled: int, shape: Sequence[int]) -> None:
    """CT-like volumes of noise, int16, `images/case_000.nii.gz`, the first `labelled` with a label of three boxes."""
    rng = np.random.default_rng(0)
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    noise = rng.integers(-1000, 1000, shape, dtype=np.int16)
    label = np.zeros(shape, np.uint8)
    for value, start in ((1, 0.1), (2, 0.4), (3, 0.7)):
        label[tuple(slice(int(n * start), int(n * (start + 0.2))) for n in shape)] = value
    for number in range(volumes):
        name = f"case_{number:03d}.nii.gz"
        image = noise + np.int16(number % 50)
        image[0, 0, 0] = number  # no two are the same
        _write(folder / "images" / name, image, affine)
        if number < labelled:
            _write(folder / "labels" / name, label, affine)


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.openers.Opener.default_compresslevel = 1  # half of the time would go into compressing noise
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def peak_mib() -> float:
    """Most memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds for the folder, and peak memory in MiB before and after."""
    before, start = peak_mib(), time.perf_counter()
    request = Request(folder, "many_volumes", config=folder / "many_volumes.yaml")
    new_dataset(request, show=lambda text: print(text, flush=True))
    return time.perf_counter() - start, before, peak_mib()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=500)
    parser.add_argument("--labelled", type=int, default=250)
    parser.add_argument("--shape", nargs=3, type=int, default=[192, 160, 96], help="voxels of each")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        make_volumes(Path(folder), options.volumes, options.labelled, options.shape)
        seconds, before, after = measure(Path(folder))
    print(
        f"{options.volumes} volumes of {' x '.join(map(str, options.shape))} voxels, {options.labelled} labelled: "
        f"{seconds:.1f} s, peak memory {after:.0f} MiB ({before:.0f} MiB before)"
    )


if __name__ == "__main__":
    main()
